package fs

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	continuityfs "github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// changes is how the layers under a layer change its tree, as they do when containerd unpacks it.
type changes struct {
	// attrs is what the directories that the layer's tar implies, but does not mention, have from
	// below. Those that none of the layers below has are left out.
	attrs map[uint64]index.Attr
	bare  bool // no layer is below: there are no whiteouts and no opaque directories
}

// name names the changes, by the hexadecimal sha256 of the attributes; "": there are none.
func (c *changes) name() string {
	switch {
	case c.bare:
		return bareName
	case len(c.attrs) == 0:
		return ""
	}
	var b []byte
	add := func(v uint64) { b = binary.LittleEndian.AppendUint64(b, v) }
	addText := func(s string) { add(uint64(len(s))); b = append(b, s...) }
	for _, nid := range slices.SortedFunc(maps.Keys(c.attrs), cmp.Compare) {
		a := c.attrs[nid]
		mtime := [2]uint64{uint64(a.Mtime.Unix()), uint64(a.Mtime.Nanosecond())}
		for _, v := range []uint64{nid, uint64(a.Mode), uint64(a.UID), uint64(a.GID), mtime[0],
			mtime[1], uint64(len(a.Xattrs))} {
			add(v)
		}
		for _, key := range slices.Sorted(maps.Keys(a.Xattrs)) {
			addText(key)
			addText(a.Xattrs[key])
		}
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// bareName is the name of a tree without whiteouts.
const bareName = "bare"

// errUnpack is why a layer is left to containerd: the index does not tell what comes out.
var errUnpack = errors.New("only unpacking the layer tells what it looks like over those below it")

// changes finds out how the layers below change the tree. Where that cannot be told for certain,
// or takes too much memory, the error is errUnpack; a layer that is in use already shows what can
// be shown.
func (l *openLayer) changes(below []Below, inUse bool) (*changes, error) {
	large := l.index.Inodes() > index.MaxRewritten
	if len(below) == 0 {
		marks, err := l.marks()
		if err != nil {
			return nil, err
		}
		if (marks.Unsure || marks.Any && large) && !inUse {
			return nil, errUnpack
		}
		return &changes{bare: marks.Any && !large}, nil
	}
	attrs, err := l.inherit(below)
	if err != nil {
		return nil, err
	}
	for nid, a := range attrs {
		// All that is made in a directory with a default ACL gets an ACL from it.
		if _, ok := a.Xattrs["system.posix_acl_default"]; (ok || large && len(a.Xattrs) > 0) &&
			!inUse {
			return nil, errUnpack
		}
		if large {
			a.Xattrs = nil
			attrs[nid] = a
		}
	}
	return &changes{attrs: attrs}, nil
}

// inherit returns the attributes that the directories which the layer's tar implies, but does not
// mention, get from the layers below, as containerd gives them: those of the topmost layer that has
// anything of that name count, by whatever links it has there, whether that is hidden by a layer
// between or not. They come through any number of layers that only imply the directory.
func (l *openLayer) inherit(below []Below) (map[uint64]index.Attr, error) {
	implicit, err := l.index.Implicit()
	if err != nil || len(implicit) == 0 {
		return nil, err
	}
	lower := lowers{t: l.t, below: below}
	defer lower.close()
	attrs := make(map[uint64]index.Attr)
	// The directories come in the order of their nids: each one behind the one that it lies in.
	return attrs, l.index.Tree().Paths(implicit, func(nid uint64, path string) error {
		a, err := lower.find(path)
		if err != nil {
			return fmt.Errorf("directory %s of a layer below: %w", path, err)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			return l.inheritGroup(nid, attrs)
		}
		a.Mode &= 0o7777
		attrs[nid] = a
		return nil
	})
}

// lowers is the layers below, of which each is opened when a look-up comes to it.
type lowers struct {
	t     *Table
	below []Below // topmost first
	open  []lookup
	done  []func()
}

// find returns what the topmost layer has that has anything at a path.
func (l *lowers) find(path string) (index.Attr, error) {
	for i, b := range l.below {
		if i == len(l.open) {
			lookup, done, err := l.t.lookup(b)
			if err != nil {
				return index.Attr{}, err
			}
			l.open, l.done = append(l.open, lookup), append(l.done, done)
		}
		if a, err := l.open[i](path); err != nil || a.Mode != 0 {
			return a, err
		}
	}
	return index.Attr{}, nil
}

func (l *lowers) close() {
	for _, done := range l.done {
		done()
	}
}

// inheritGroup gives a directory that is not below the group of the one that it lies in, where that
// has the setgid bit from below: the kernel does so when it is made.
func (l *openLayer) inheritGroup(nid uint64, attrs map[uint64]index.Attr) error {
	parent, err := l.index.Tree().Lookup(nid, "..")
	if err != nil {
		return err
	}
	a, ok := attrs[parent]
	if !ok || a.Mode&unix.S_ISGID == 0 {
		return nil
	}
	ino, err := l.index.Tree().Inode(nid)
	if err == nil {
		attrs[nid] = index.Attr{Mode: ino.Mode & 0o7777, UID: ino.UID, GID: a.GID, Mtime: ino.Mtime}
	}
	return err
}

// lookup finds a path in a layer, by links that stay in the layer. Mode is the st_mode: 0 where
// there is nothing.
type lookup func(path string) (index.Attr, error)

// notDir is what lookup returns where a way leads through something that is no directory:
// containerd does not look any further either.
var notDir = index.Attr{Mode: unix.S_IFREG}

// lookup returns the lookup of a layer below, and what ends it. Layers of the table are read from
// their indexes, because a daemon must not wait for its own mounts.
func (t *Table) lookup(b Below) (find lookup, done func(), err error) {
	if b.Digest == "" {
		return func(path string) (index.Attr, error) { return statDir(b.Dir, path) }, func() {}, nil
	}
	l, err := t.stored(b.Digest, "")
	if err != nil {
		return nil, nil, fmt.Errorf("layer %s below: %w", b.Digest, err)
	}
	f, err := os.Open(l.shownAt(t.names.spot(b.Dir)))
	if err != nil {
		return nil, nil, fmt.Errorf("layer %s below: %w", b.Digest, err)
	}
	x, err := openVariant(f)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("layer %s below: %w", b.Digest, err), f.Close())
	}
	return func(path string) (index.Attr, error) { return treeDir(x.Tree(), path) },
		func() { f.Close() }, nil
}

// treeDir is lookup in a tree.
func treeDir(t *erofs.Tree, path string) (index.Attr, error) {
	clean, err := tartree.Resolve(path, func(p string) (string, error) {
		ino, err := t.Lstat(p)
		if err != nil || ino.Mode&unix.S_IFMT != unix.S_IFLNK {
			return "", ignoreMissing(err)
		}
		return t.Readlink(ino.Nid)
	})
	var ino erofs.Inode
	if err == nil {
		ino, err = t.Lstat(clean)
	}
	a := index.Attr{Mode: ino.Mode, UID: ino.UID, GID: ino.GID, Mtime: ino.Mtime}
	if err != nil || ino.Mode&unix.S_IFMT != unix.S_IFDIR || !ino.HasXattrs {
		return a, lookupError(&a, err)
	}
	err = t.Xattrs(ino.Nid, func(name string, value []byte) bool {
		if inherited(name) {
			addXattr(&a, name, value)
		}
		return true
	})
	return a, err
}

// lookupError makes of an error of a look-up what it says of the path.
func lookupError(a *index.Attr, err error) error {
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err,
		unix.ENAMETOOLONG) {
		*a = notDir
		return nil
	}
	return ignoreMissing(err)
}

// inherited says whether containerd gives a directory that a tar implies this attribute of the
// one below. A label of SELinux it has already, from the kernel.
func inherited(xattr string) bool {
	return !strings.HasPrefix(xattr, "trusted.") && xattr != "security.selinux"
}

func addXattr(a *index.Attr, key string, value []byte) {
	if a.Xattrs == nil {
		a.Xattrs = map[string]string{}
	}
	a.Xattrs[key] = string(value)
}

// statDir is lookup below root, which containerd has unpacked.
func statDir(root, path string) (index.Attr, error) {
	var a index.Attr
	full, err := continuityfs.RootPath(root, path)
	if err != nil {
		return a, lookupError(&a, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return a, lookupError(&a, err)
	}
	a = index.Attr{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: time.Unix(st.Mtim.Unix())}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return a, nil
	}
	keys, err := sysx.LListxattr(full)
	if err != nil {
		return a, fmt.Errorf("extended attributes of %s: %w", full, err)
	}
	for _, key := range keys {
		if inherited(key) {
			value, err := sysx.LGetxattr(full, key)
			if err != nil {
				return a, fmt.Errorf("extended attribute %s of %s: %w", key, full, err)
			}
			addXattr(&a, key, value)
		}
	}
	return a, nil
}

// variantPath is the index file with these changes.
func (l *openLayer) variantPath(name string) string {
	if name == "" {
		return l.store.IndexPath()
	}
	return l.store.IndexPath() + "-" + name
}

// shownAt is the index file that is mounted, or was, at the mount point of a spot.
func (l *openLayer) shownAt(s spot) string {
	if s.lowest {
		s.variant = bareName
	}
	path := l.variantPath(s.variant)
	if _, err := os.Stat(path); s.lowest && err != nil {
		return l.store.IndexPath()
	}
	return path
}

// writeVariant writes the copy of the index with these changes, unless it is there, and returns the
// index file that is to be mounted at the spot.
func (l *openLayer) writeVariant(s spot, c *changes) (string, error) {
	path := l.variantPath(c.name())
	if _, err := os.Stat(path); path == l.store.IndexPath() || err == nil && !l.proof.Forged() {
		return l.shownAt(s), nil
	}
	if l.proof.Forged() {
		return "", proof.ErrForged
	}
	l.t.rewriting.Lock() // one tree in memory at a time
	defer l.t.rewriting.Unlock()
	err := atomicfile.Replace(path, 0o600, func(w io.Writer) error {
		if c.bare {
			return index.Bare(w, l.index)
		}
		return index.Patch(w, l.index, c.attrs)
	})
	if err != nil {
		return "", fmt.Errorf("write index as the layers below change it: %w", err)
	}
	return l.shownAt(s), nil
}
