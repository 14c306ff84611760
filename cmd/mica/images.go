package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/cache"
)

// maxUsers bounds how many containers the table names for an image.
const maxUsers = 3

// imagesFlags are the flags of `mica images`.
type imagesFlags struct {
	containerd containerdFlags
	namespace  string
	asJSON     bool
}

func imagesCommand() *cobra.Command {
	f := &imagesFlags{}
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List containerd's images: how lazy they are, and what uses them",
		Long: "List containerd's images: how lazy they are, and what uses them.\n\n" +
			"SIZE is that of the unpacked layers, and ON NODE how much of it is here. Layers are " +
			"lazy (micad\n" +
			"serves them, and fetches what is read), whole (micad serves them, all of it is here), " +
			"or ordinary\n" +
			"(containerd has unpacked them, with the snapshotter that is named where it is not " +
			"micad).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", os.Getenv(namespaces.NamespaceEnvVar),
		"containerd's namespace ($"+namespaces.NamespaceEnvVar+"); empty: all")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	f.containerd.add(cmd)
	return cmd
}

// imageStatus is an image of containerd. Names that stand for the same image are one.
type imageStatus struct {
	Names     []string      `json:"names"`
	Namespace string        `json:"namespace"`
	Digest    digest.Digest `json:"digest"`
	Platform  string        `json:"platform,omitempty"`
	// Snapshotter has the image unpacked; "": none has.
	Snapshotter string        `json:"snapshotter,omitempty"`
	Layers      []layerStatus `json:"layers"`
	Size        int64         `json:"size_bytes"`     // of the layers, unpacked
	Blobs       int64         `json:"registry_bytes"` // of the layers in the registry
	Present     int64         `json:"present_bytes"`  // of Size, on this node
	UsedBy      []string      `json:"used_by"`        // containers
	// Error says why no more is known; "": more is.
	Error string `json:"error,omitempty"`
}

// layerStatus is a layer of an image.
type layerStatus struct {
	Layer   digest.Digest `json:"layer"`
	State   string        `json:"state"` // "lazy", "whole", "ordinary" or "absent"
	Size    int64         `json:"size_bytes"`
	Present int64         `json:"present_bytes"`
}

func (f *imagesFlags) run(ctx context.Context, w io.Writer) error {
	client, micad, err := f.containerd.open(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	var usage []cache.Usage
	if err := micad.Get(ctx, admin.PathUsage, &usage); err != nil {
		return err
	}
	served := map[digest.Digest]cache.Usage{}
	for _, u := range usage {
		served[u.Layer] = u
	}
	spaces := []string{f.namespace}
	if f.namespace == "" {
		if spaces, err = client.NamespaceService().List(ctx); err != nil {
			return fmt.Errorf("ask containerd for its namespaces: %w", err)
		}
	}
	out := []*imageStatus{}
	for _, name := range spaces {
		l := imageLister{
			client: client, micad: f.containerd.snapshotter, namespace: name, served: served,
			snapshots: map[string]map[string]snapshots.Info{},
		}
		found, err := l.list(namespaces.WithNamespace(ctx, name))
		if err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
		out = append(out, found...)
	}
	if f.asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(out)
	}
	return printImages(w, f.containerd.snapshotter, out)
}

func printImages(w io.Writer, micad string, all []*imageStatus) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tNAMESPACE\tLAYERS\tSIZE\tON NODE\tUSED BY")
	for _, s := range all {
		size, here := show.Bytes(s.Size), "-"
		switch {
		case s.Snapshotter == "":
			size = "-"
		case s.Size > 0:
			here = fmt.Sprintf("%s (%.0f%%)", show.Bytes(s.Present),
				100*float64(s.Present)/float64(s.Size))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Names[0], s.Namespace, layersText(s, micad),
			size, here, usersText(s.UsedBy))
		for _, name := range s.Names[1:] {
			fmt.Fprintf(t, "%s\t%s\tthe same\t\t\t\n", name, s.Namespace)
		}
	}
	return t.Flush()
}

// layersText counts an image's layers by how they are there.
func layersText(s *imageStatus, micad string) string {
	switch {
	case s.Error != "":
		return s.Error
	case s.Snapshotter == "":
		return "not unpacked"
	}
	count := map[string]int{}
	for _, l := range s.Layers {
		count[l.State]++
	}
	var parts []string
	for _, state := range []string{"lazy", "whole", "ordinary", "absent"} {
		if n := count[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	text := cmp.Or(strings.Join(parts, ", "), "none")
	if s.Snapshotter != micad {
		text += " (" + s.Snapshotter + ")"
	}
	return text
}

// usersText names some containers, without most of the digits of those that have no other name.
func usersText(users []string) string {
	var names []string
	for _, u := range users[:min(len(users), maxUsers)] {
		if len(u) == 64 && digest.SHA256.Validate(u) == nil {
			u = u[:12]
		}
		names = append(names, u)
	}
	if more := len(users) - maxUsers; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return cmp.Or(strings.Join(names, ", "), "-")
}
