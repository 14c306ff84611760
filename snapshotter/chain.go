package snapshotter

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"
)

// link is one committed snapshot of a chain.
type link struct {
	id     string // never used again for another snapshot
	name   string
	target string  // its chain ID, "" when containerd did not name one
	served *record // nil: an ordinary snapshot
	dir    string  // its lower directory

	// What examine has found: a layer is not proved; it is not, or not as, it was when layers above
	// it were mounted first. What those inherit from it may be other attributes now, which they
	// show at another directory.
	doubted, changed bool
}

// chain is a committed snapshot and those under it, topmost first.
type chain []link

// readChain returns the chain that starts at the named snapshot, an empty one for "". Needs a
// transaction.
func (s *Snapshotter) readChain(ctx context.Context, name string) (chain, error) {
	var c chain
	for name != "" {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("read parent %s: %w", name, err)
		}
		l := link{id: id, name: name, target: chainID(info), dir: s.upperDir(id)}
		if l.served, err = recordOf(info); err != nil {
			return nil, err
		}
		if l.served != nil {
			l.dir = l.served.Dir
		}
		c = append(c, l)
		name = info.Parent
	}
	return c, nil
}

// chainID returns the chain ID of a committed snapshot, "" when it has none: containerd names it in a
// label, or, for what it has unpacked otherwise, at the end of the snapshot's name.
func chainID(info snapshots.Info) string {
	if target := info.Labels[snapshots.LabelSnapshotRef]; target != "" {
		return target
	}
	name := info.Name[strings.LastIndexByte(info.Name, '/')+1:]
	if digest.Digest(name).Validate() != nil {
		return ""
	}
	return name
}

// viewChain is readChain in a transaction of its own.
func (s *Snapshotter) viewChain(ctx context.Context, name string) (c chain, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		c, err = s.readChain(ctx, name)
		return err
	})
	return c, err
}

// top returns the topmost served layer, with all that are served as its Image.
func (c chain) top() (top Layer) {
	for _, l := range slices.Backward(c) {
		if l.served != nil {
			image := append(top.Image, l.served.Layer)
			top = l.served.layer()
			top.Image = image
		}
	}
	return top
}

// lower returns the directories that overlayfs gets, topmost first: each once, because it takes
// none twice. Layers gives the same layer a directory for each of its places, but a former
// version gave it one, which then is left out below.
func (c chain) lower() []string {
	var dirs []string
	for _, l := range c {
		if !slices.Contains(dirs, l.dir) {
			dirs = append(dirs, l.dir)
		}
	}
	return dirs
}

// served says whether a layer of the chain is.
func (c chain) served() bool {
	return slices.ContainsFunc(c, func(l link) bool { return l.served != nil })
}

// examine asks Layers how far the chain's layers can be trusted.
func (s *Snapshotter) examine(c chain) {
	for i := range c {
		l := &c[i]
		if l.served == nil {
			continue
		}
		proved, forged := s.layers.Trust(l.served.layer())
		l.doubted, l.changed = !proved, forged || len(l.served.Former) > 0
	}
}

// below returns the chain's layers as those under another one. A snapshot that containerd unpacked
// has no blob, whatever its labels named.
func (c chain) below() []Below {
	below := make([]Below, len(c))
	for i, l := range c {
		below[i].Dir = l.dir
		if l.served != nil {
			below[i].Digest = l.served.Layer
		}
	}
	return below
}

// doubted says whether a layer of the chain is.
func (c chain) doubted() bool { return c.lowestDoubted() >= 0 }

// lowestDoubted returns the lowest layer of the chain that is doubted, -1 where none is.
func (c chain) lowestDoubted() int {
	for i := len(c) - 1; i >= 0; i-- {
		if c[i].doubted {
			return i
		}
	}
	return -1
}

// changed says whether a layer of the chain has.
func (c chain) changed() bool {
	return slices.ContainsFunc(c, func(l link) bool { return l.changed })
}

// target returns the chain ID of the whole chain, "" for none.
func (c chain) target() string {
	if len(c) == 0 {
		return ""
	}
	return c[0].target
}
