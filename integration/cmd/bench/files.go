package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"

	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// fileResult is the median time of a file operation on a whole image.
type fileResult struct {
	Operation   string  `json:"operation"` // find, stat, small files, sequential
	Cache       string  `json:"cache"`     // cold or warm
	Tree        string  `json:"tree"`      // overlayfs, mica local, mica erofs
	Seconds     float64 `json:"seconds"`
	Runs        int     `json:"runs"`
	OfOverlayfs float64 `json:"of_overlayfs"`
}

// filesImage is the workload whose image is read: many small files and some large ones.
const filesImage = "pandas"

const (
	smallFile   = 16 << 10  // bytes, at most
	largeFile   = 1 << 20   // bytes, at least
	largeInAll  = 512 << 20 // bytes that are read one after the other, about
	sequentialN = 1 << 20   // bytes of a read
)

// tree is a root filesystem that is compared.
type tree struct {
	name, dir string
}

// files compares file operations on a complete image: unpacked by overlayfs, in
// mode local, and in mode erofs, all of them below an overlay mount as a
// container has it. The image has no index, so it is downloaded as a whole.
func (l *lab) files(ctx context.Context, runs int) (_ []fileResult, err error) {
	say("preparing %s for file operations", filesImage)
	l.registry.SetProfile(shaper.Profile{})
	w := workloads[slices.IndexFunc(workloads,
		func(w workload) bool { return w.name == filesImage })]
	img, err := w.recipe.Build(ctx)
	if err != nil {
		return nil, err
	}
	if err := images.Push(ctx, l.direct(w, nothing), img); err != nil {
		return nil, err
	}
	var trees []tree
	for _, v := range []struct {
		name string
		node.Options
		snapshotter string
	}{
		{"overlayfs", node.Options{NoMicad: true}, "overlayfs"},
		{"mica local", node.Options{}, node.Snapshotter},
		{"mica erofs", node.Options{Mode: "erofs"}, node.Snapshotter},
	} {
		n, err := node.Start(ctx, "", v.Options)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, n.Close()) }()
		dir, err := view(ctx, n, v.snapshotter, l.ref(w, nothing))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
		trees = append(trees, tree{v.name, dir})
	}
	paths, err := list(trees[0].dir)
	if err != nil {
		return nil, err
	}
	return compare(ctx, trees, paths, runs)
}

// view pulls an image and mounts it read-only. The mount and the snapshot end
// with the node.
func view(ctx context.Context, n *node.Node, snapshotter, ref string) (string, error) {
	if err := n.Pull(ctx, snapshotter, ref); err != nil {
		return "", err
	}
	client, err := n.Client()
	if err != nil {
		return "", err
	}
	ctx = namespaces.WithNamespace(ctx, n.Namespace())
	img, err := client.GetImage(ctx, ref)
	if err != nil {
		return "", err
	}
	diffIDs, err := img.RootFS(ctx)
	if err != nil {
		return "", err
	}
	ctx, _, err = client.WithLease(ctx)
	if err != nil {
		return "", err
	}
	mounts, err := client.SnapshotService(snapshotter).View(ctx, "bench",
		identity.ChainID(diffIDs).String())
	if err != nil {
		return "", err
	}
	dir := filepath.Join(n.Dir, "view")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	return dir, mount.All(mounts, dir)
}

// paths are the files of the image, relative to its root.
type paths struct {
	all, small, large []string
}

func list(root string) (p paths, err error) {
	var large int64
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		p.all = append(p.all, rel)
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case !info.Mode().IsRegular():
		case info.Size() <= smallFile:
			p.small = append(p.small, rel)
		case info.Size() >= largeFile && large < largeInAll:
			large += info.Size()
			p.large = append(p.large, rel)
		}
		return nil
	})
	return p, err
}

// operation is something that is done to all files of a tree.
type operation struct {
	name string
	do   func(root string, p paths) error
}

var operations = []operation{
	{"find", func(root string, _ paths) error {
		return filepath.WalkDir(root, func(_ string, _ fs.DirEntry, err error) error { return err })
	}},
	{"stat", func(root string, p paths) error {
		var st unix.Stat_t
		for _, path := range p.all {
			if err := unix.Lstat(root+"/"+path, &st); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		return nil
	}},
	{"small files", func(root string, p paths) error {
		return readFiles(root, p.small, smallFile)
	}},
	{"sequential", func(root string, p paths) error {
		return readFiles(root, p.large, sequentialN)
	}},
}

// readFiles reads files to their ends, in reads of n bytes.
func readFiles(root string, paths []string, n int) error {
	buf := make([]byte, n)
	for _, path := range paths {
		fd, err := unix.Open(root+"/"+path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		got := 1
		for got > 0 && err == nil {
			got, err = unix.Read(fd, buf)
		}
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// compare times all operations, the trees by turns, each from a cold page cache
// and then again.
func compare(ctx context.Context, trees []tree, p paths, runs int) ([]fileResult, error) {
	times := map[fileResult][]float64{} // by operation, cache and tree
	for run := range runs {
		say("file operations, run %d: %d paths, %d small files, %d large ones", run+1, len(p.all),
			len(p.small), len(p.large))
		for _, op := range operations {
			for _, t := range trees {
				if err := dropCaches(); err != nil {
					return nil, err
				}
				for _, cache := range []string{"cold", "warm"} {
					if err := ctx.Err(); err != nil {
						return nil, err
					}
					begin := time.Now()
					if err := op.do(t.dir, p); err != nil {
						return nil, fmt.Errorf("%s on %s: %w", op.name, t.name, err)
					}
					key := fileResult{Operation: op.name, Cache: cache, Tree: t.name}
					times[key] = append(times[key], time.Since(begin).Seconds())
				}
			}
		}
	}
	var results []fileResult
	for _, op := range operations {
		for _, cache := range []string{"cold", "warm"} {
			full := middle(times[fileResult{Operation: op.name, Cache: cache, Tree: trees[0].name}])
			for _, t := range trees {
				r := fileResult{Operation: op.name, Cache: cache, Tree: t.name}
				s := middle(times[r])
				r.Seconds, r.Runs, r.OfOverlayfs = s, runs, round(s/full)
				results = append(results, r)
			}
		}
	}
	return results, nil
}

// fileTable prints the comparison.
func (r *results) fileTable(out io.Writer) {
	if len(r.Files) == 0 {
		return
	}
	fmt.Fprintf(out, "\nfile operations on the complete image %s below overlayfs; medians of %d, milliseconds\n\n", filesImage, r.Files[0].Runs)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "operation\tcache\ttree\tms\t/overlayfs\t")
	for _, f := range r.Files {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f\t%.2f\t\n", f.Operation, f.Cache, f.Tree, f.Seconds*1000,
			f.OfOverlayfs)
	}
	_ = w.Flush()
}
