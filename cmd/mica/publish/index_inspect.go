package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/bundle"
)

// maxTrees bounds the trees blob that inspect keeps in memory, bytes.
const maxTrees = 256 << 20

func indexInspectCommand() *cobra.Command {
	var registry reach.Registry
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect [flags] REF|DIR[:NAME]|FILE",
		Short: "Show what an index holds",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := inspect(cmd.Context(), &registry, args[0])
			if err != nil {
				return err
			}
			return r.print(cmd.OutOrStdout(), asJSON)
		},
	}
	registry.AddImage(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// inspection is what `mica index inspect --json` prints. Sizes are bytes.
type inspection struct {
	Source  string           `json:"source"`
	Digest  digest.Digest    `json:"digest,omitempty"` // of the artifact; none for a file
	Trees   int64            `json:"trees_size"`
	Windows int64            `json:"windows_size"`
	Layers  []inspectedLayer `json:"layers"`
}

type inspectedLayer struct {
	Layer      digest.Digest `json:"layer"`
	DiffID     digest.Digest `json:"diff_id"`
	LayerSize  int64         `json:"layer_size"`
	DeviceSize int64         `json:"uncompressed_size"`
	Files      int64         `json:"files"`
	Spans      int           `json:"spans"`
	Tree       int64         `json:"tree_size"`    // of the EROFS image
	Packed     int64         `json:"packed_size"`  // of tree and span table in the trees blob
	Windows    int64         `json:"windows_size"` // of the windows in the windows blob
}

func inspect(ctx context.Context, registry *reach.Registry, name string) (*inspection, error) {
	st, err := os.Stat(name)
	if err == nil && st.Mode().IsRegular() {
		return inspectFile(name, st.Size())
	}
	im, m, err := registry.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	refs, err := im.Referrers(ctx, m.Desc.Digest, artifact.Type)
	if err != nil {
		return nil, err
	}
	if refs = artifact.Of(artifact.Type, refs); len(refs) == 0 {
		return nil, fmt.Errorf("%s has no index: make one with `mica index create --push %s`",
			im.Ref(), name)
	}
	x, b, err := artifact.Fetch(ctx, im, refs[0], maxTrees)
	if err != nil {
		return nil, err
	}
	r := &inspection{Source: im.Ref(), Digest: refs[0].Digest, Trees: x.Trees.Size,
		Windows: x.Windows.Size}
	return r, r.add(b)
}

// inspectFile reads a file that index create -o has made: the trees blob, then the windows blob.
func inspectFile(name string, size int64) (*inspection, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	trees, err := bundle.TreesSize(f, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	b, err := bundle.Open(f, trees, bundle.Limits{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r := &inspection{Source: name, Trees: trees, Windows: size - trees}
	return r, r.add(b)
}

func (r *inspection) add(b *bundle.Bundle) error {
	for _, l := range b.Layers() {
		one := inspectedLayer{
			Layer: l.Layer, DiffID: l.DiffID, LayerSize: l.LayerSize, DeviceSize: l.DeviceSize,
			Packed: l.Frame.Size, Windows: l.Windows.Size,
		}
		if err := one.open(b); err != nil {
			return err
		}
		r.Layers = append(r.Layers, one)
	}
	return nil
}

// open reads from the layer's index what the bundle's table does not tell.
func (l *inspectedLayer) open(b *bundle.Bundle) (err error) {
	f, err := os.CreateTemp("", "mica-inspect-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if err := b.Extract(l.Layer, f); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	x, err := index.Open(f, st.Size())
	if err != nil {
		return err
	}
	spans, err := x.Spans()
	if err != nil {
		return err
	}
	l.Files, l.Spans, l.Tree = x.Inodes(), len(spans), x.TreeSize()
	return nil
}

func (r *inspection) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return show.JSON(w, r)
	}
	fmt.Fprintf(w, "index of %s\n", r.Source)
	if r.Digest != "" {
		fmt.Fprintf(w, "digest %s\n", r.Digest)
	}
	fmt.Fprintf(w, "before a container starts: %s; with the data: %s\n\n", show.Bytes(r.Trees),
		show.Bytes(r.Windows))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "LAYER\tCOMPRESSED\tTAR\tFILES\tSPANS\tTREE\tPACKED\tWINDOWS\tINDEX/LAYER\t")
	for _, l := range r.Layers {
		share := 100 * float64(l.Packed+l.Windows) / float64(max(l.LayerSize, 1))
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%.2f%%\t\n", show.Short(l.Layer.String()),
			show.Bytes(l.LayerSize), show.Bytes(l.DeviceSize),
			l.Files, l.Spans, show.Bytes(l.Tree), show.Bytes(l.Packed),
			show.Bytes(l.Windows), share)
	}
	return t.Flush()
}
