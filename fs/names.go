package fs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// Names below Options.Root.
const (
	mountsName  = "m"
	namesName   = "names"
	devicesName = "dev"
)

// spot is what a mount point shows, and where in an image: a layer that an image has twice has two
// mounts, because overlayfs takes no directory twice, and leaving one out would change what of its
// whiteouts is to be seen.
type spot struct {
	layer digest.Digest
	// variant names the attributes that come from the layers below, see changes; "": none.
	variant string
	lowest  bool // no layer is below, so that there are no whiteouts
	copy    int  // how many of the layers below are the same layer
}

// spotSep is between the parts of a spot's text.
const spotSep = ","

func (s spot) String() string {
	below := "above"
	if s.lowest {
		below = "lowest"
	}
	return strings.Join([]string{s.layer.String(), s.variant, below, strconv.Itoa(s.copy)}, spotSep)
}

func parseSpot(text string) (spot, error) {
	part := strings.Split(text, spotSep)
	if len(part) != 4 {
		return spot{}, fmt.Errorf("mount point of %q", text)
	}
	n, err := strconv.Atoi(part[3])
	s := spot{layer: digest.Digest(part[0]), variant: part[1], lowest: part[2] == "lowest", copy: n}
	if err = errors.Join(err, s.layer.Validate()); err != nil || s.String() != text {
		return spot{}, fmt.Errorf("mount point of %q: %w", text, err)
	}
	return s, nil
}

// names gives mount points short names, because overlayfs takes all lower directories of an image
// in one page, and it takes 500 of them. A spot keeps its name until its layer is removed; on
// disk the name is a symbolic link, below Options.Root, to the text of the spot. Made by
// openNames.
type names struct {
	dir    string // of the links
	mounts string // of the mount points

	mu     sync.Mutex
	byName map[string]spot
	bySpot map[spot]string
}

// nameSize is the length of a name: 25 bits.
const nameSize = 5

func openNames(root string) (*names, error) {
	n := &names{
		dir: filepath.Join(root, namesName), mounts: filepath.Join(root, mountsName),
		byName: map[string]spot{}, bySpot: map[spot]string{},
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open names of mount points: %w", err)
	}
	entries, err := os.ReadDir(n.dir)
	if err != nil {
		return nil, fmt.Errorf("open names of mount points: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(n.dir, e.Name())
		text, err := os.Readlink(path)
		var s spot
		if err == nil {
			s, err = parseSpot(text)
		}
		if err != nil { // the next who needs the mount point names it again
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("open names of mount points: %w", err)
			}
			continue
		}
		n.addLocked(e.Name(), s)
	}
	return n, nil
}

// addLocked notes a name; of several names of one spot the first counts.
func (n *names) addLocked(name string, s spot) {
	n.byName[name] = s
	if _, ok := n.bySpot[s]; !ok {
		n.bySpot[s] = name
	}
}

// path returns the mount point of a spot, with a new name if it has none.
func (n *names) path(s spot) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.bySpot[s]
	for !ok {
		name = strings.ToLower(rand.Text()[:nameSize])
		if n.inUse(name) {
			continue
		}
		if err := n.linkLocked(name, s); err != nil {
			return "", err
		}
		ok = true
	}
	return filepath.Join(n.mounts, name), nil
}

// inUse says whether a name is in use, or something of that name is left, of which nothing is
// asked: it may be a mount that nobody serves.
func (n *names) inUse(name string) bool {
	_, link := os.Lstat(filepath.Join(n.dir, name))
	_, dir := mountinfo.ID(filepath.Join(n.mounts, name))
	return !errors.Is(link, os.ErrNotExist) || !errors.Is(dir, os.ErrNotExist)
}

func (n *names) linkLocked(name string, s spot) error {
	if err := os.Symlink(s.String(), filepath.Join(n.dir, name)); err != nil {
		return fmt.Errorf("name a mount point: %w", err)
	}
	n.addLocked(name, s)
	return nil
}

// assign has a spot keep the mount point that a snapshot has of it: of a former version, which
// had names of its own, or because a disk has lost the link. It returns the spot that the mount
// point shows in truth, where snapshots of former versions share it: the first one that was
// assigned.
func (n *names) assign(path string, s spot) (spot, error) {
	name := filepath.Base(path)
	if filepath.Dir(path) != n.mounts {
		return spot{}, fmt.Errorf("mount point %s is not below %s", path, n.mounts)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	owner, ok := n.byName[name]
	switch {
	case !ok:
		return s, n.linkLocked(name, s)
	case owner.layer != s.layer:
		return spot{}, fmt.Errorf("mount point %s belongs to layer %s now", path, owner.layer)
	}
	return owner, nil
}

// spot returns what a mount point shows; nothing, where it has no name.
func (n *names) spot(path string) spot {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byName[filepath.Base(path)]
}

// of returns the mount points of a layer.
func (n *names) of(d digest.Digest) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var paths []string
	for name, s := range n.byName {
		if s.layer == d {
			paths = append(paths, filepath.Join(n.mounts, name))
		}
	}
	slices.Sort(paths)
	return paths
}

// layers returns the layers that have names.
func (n *names) layers() []digest.Digest {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := map[digest.Digest]bool{}
	for _, s := range n.byName {
		all[s.layer] = true
	}
	return slices.Collect(maps.Keys(all))
}

// forget gives up the names of a layer.
func (n *names) forget(d digest.Digest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for name, s := range n.byName {
		if s.layer != d {
			continue
		}
		delete(n.byName, name)
		delete(n.bySpot, s)
		errs = append(errs, ignoreMissing(os.Remove(filepath.Join(n.dir, name))))
	}
	return errors.Join(errs...)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
