package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
)

const (
	rebootImages = 4
	rebootLayers = 25 // of each
	// saved is after what time what has come is noted on disk: two seconds, and the time that it
	// takes to write it.
	saved = 6 * time.Second
)

// After a reboot without the registry micad answers within two seconds, all of a hundred layers are
// mounted soon after, and those of which everything is here can be read: whether they are whole and
// the kernel's, or served by micad.
func TestRebootWithoutRegistry(t *testing.T) {
	ctx := fixture.Context(t)
	r := fixture.Registry(t)
	var refs []string
	tree := func(i int) known.Tree {
		return known.Tree{Seed: uint64(100 + i), Files: 2 * rebootLayers, Size: 30 << 10}
	}
	for i := range rebootImages {
		img, err := images.Known(tree(i), "data", rebootLayers)
		mustf(t, err, "image")
		name := fmt.Sprint("image", i)
		refs = append(refs, fixture.Push(t, r, name, img))
		fixture.Index(t, r, name)
	}
	for name, opts := range map[string]node.Options{
		"complete": {Keep: true},
		"lazy":     {Keep: true, DemandOnly: true},
		"fuse":     {Keep: true, DemandOnly: true, Mode: "fuse"},
	} {
		t.Run(name, func(t *testing.T) {
			n := fixture.Node(t, opts)
			for _, ref := range refs {
				fixture.Pull(t, n, mica, ref)
			}
			if name == "complete" {
				fixture.Eventually(t, time.Minute, func() string { return incomplete(t, n) })
			} else {
				t.Run("first", func(t *testing.T) { // what is read is here afterwards
					for i, ref := range refs {
						passes(t, tree(i), fixture.Mount(t, n, mica, ref))
					}
				})
				time.Sleep(saved)
			}
			mounts := fixture.LayerMounts(t, n)
			mustf(t, n.Reboot(false), "reboot")
			mustf(t, r.Down(), "registry")
			defer func() { mustf(t, r.Up(), "registry") }()
			took, err := n.Boot(ctx)
			mustf(t, err, "boot")
			start := time.Now()
			mustf(t, n.AwaitMicad(ctx, 0, true), "restore")
			t.Logf("micad answers after %v, and has mounted %d layers %v later", took, rebootImages*rebootLayers, time.Since(start))
			if took > 2*time.Second {
				t.Errorf("micad answers after %v", took)
			}
			// A layer that is made local at this moment has two mounts.
			fixture.Eventually(t, 10*time.Second, func() string {
				after := fixture.LayerMounts(t, n)
				if len(after) > len(mounts) || len(after) < rebootImages*rebootLayers {
					return fmt.Sprintf("%d mount points, before %d", len(after), len(mounts))
				}
				return ""
			})
			t.Run("after", func(t *testing.T) {
				for i, ref := range refs {
					passes(t, tree(i), fixture.Mount(t, n, mica, ref))
				}
			})
		})
	}
}

// passes reads an image's tree from end to end.
func passes(t *testing.T, tree known.Tree, v fixture.View) {
	t.Helper()
	l := known.New(tree, v.Dir+"/data", known.Options{Readers: 4})
	l.Pass()
	if got := l.Report(); !got.Passed || got.Failed+got.Wrong > 0 {
		t.Errorf("%s: %+v", v.Dir, got)
	}
}

// incomplete says which layer of a node is not whole, "" for none.
func incomplete(t *testing.T, n *node.Node) string {
	t.Helper()
	var all []fs.Status
	if err := admin.NewClient(n.MicadAddress()).Get(fixture.Context(t), admin.PathLayers, &all); err != nil {
		return err.Error()
	}
	for _, l := range all {
		if l.Mode != fs.Local {
			return fmt.Sprintf("%s: %s, %d of %d bytes", l.Layer, l.Mode, l.Present, l.Total)
		}
	}
	if len(all) < rebootImages*rebootLayers {
		return fmt.Sprintf("%d layers", len(all))
	}
	return ""
}
