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
	"path/filepath"
	"slices"
	"strings"
	"time"

	continuityfs "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
)

// inherit returns the attributes that the directories which the layer's tar implies, but does not
// mention, have in the layers below: the topmost that has anything of that name counts. Directories that
// none has are left out.
func (v *live) inherit(below []Below) (map[uint64]index.Attr, error) {
	implicit, err := v.index.Implicit()
	if err != nil || len(implicit) == 0 || len(below) == 0 {
		return nil, err
	}
	lookups := make([]func(string) (*index.Attr, error), len(below))
	for i, b := range below {
		if lookups[i], err = v.t.lookup(b); err != nil {
			return nil, err
		}
	}
	attrs := make(map[uint64]index.Attr)
	return attrs, v.index.Tree().Paths(implicit, func(nid uint64, path string) error {
		for _, lookup := range lookups {
			a, err := lookup(path)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("directory %s of a layer below: %w", path, err)
			}
			if a != nil {
				attrs[nid] = *a
			}
			break
		}
		return nil
	})
}

// lookup returns a function that finds a path in a layer: the attributes of a directory, nil for
// something else, os.ErrNotExist. Layers of the table are read from their indexes, because a daemon must not
// wait for its own mounts.
func (t *Table) lookup(b Below) (func(path string) (*index.Attr, error), error) {
	if b.Digest == "" {
		return func(path string) (*index.Attr, error) { return statDir(b.Dir, path) }, nil
	}
	v, err := t.stored(Layer{Digest: b.Digest})
	if err != nil {
		return nil, fmt.Errorf("layer %s below: %w", b.Digest, err)
	}
	return func(path string) (*index.Attr, error) {
		x, done, err := v.provedIndex()
		if err != nil {
			return nil, err
		}
		defer done()
		return treeDir(x.Tree(), path)
	}, nil
}

// maxLinks bounds the symbolic links on the way to a directory, as Linux does.
const maxLinks = 40

// treeDir finds a directory of a tree. Symbolic links on the way are followed inside of the tree.
func treeDir(t *index.Tree, path string) (*index.Attr, error) {
	nid, links := t.Root(), 0
	stack := []uint64{nid}
	rest := strings.Split(path, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(len(stack)-1, 1)]
			nid = stack[len(stack)-1]
			continue
		}
		next, err := t.Lookup(nid, name)
		if err != nil {
			return nil, err
		}
		ino, err := t.Inode(next)
		if err != nil {
			return nil, err
		}
		switch ino.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			nid = next
			stack = append(stack, nid)
		case unix.S_IFLNK:
			if len(rest) == 0 {
				return nil, nil
			}
			if links++; links > maxLinks {
				return nil, nil
			}
			target, err := t.Readlink(next)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(target, "/") {
				nid, stack = t.Root(), stack[:1]
			}
			rest = append(strings.Split(target, "/"), rest...)
		default:
			return nil, nil
		}
	}
	ino, err := t.Inode(nid)
	if err != nil {
		return nil, err
	}
	return &index.Attr{Mode: ino.Mode & 0o7777, UID: ino.UID, GID: ino.GID, Mtime: ino.Mtime}, nil
}

// statDir finds a directory below root, which containerd has unpacked.
func statDir(root, path string) (*index.Attr, error) {
	full, err := continuityfs.RootPath(root, path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: filepath.Join(root, path), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, nil
	}
	return &index.Attr{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Mtime: time.Unix(st.Mtim.Unix())}, nil
}

// variant names the set of attributes; "" for none.
func variant(attrs map[uint64]index.Attr) string {
	if len(attrs) == 0 {
		return ""
	}
	var b []byte
	for _, nid := range slices.SortedFunc(maps.Keys(attrs), cmp.Compare) {
		a := attrs[nid]
		for _, v := range []uint64{nid, uint64(a.Mode), uint64(a.UID), uint64(a.GID), uint64(a.Mtime.Unix()), uint64(a.Mtime.Nanosecond())} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	sum := sha256.Sum256(b)
	return "-" + hex.EncodeToString(sum[:4])
}

// writeVariant writes the copy of the index with these attributes, unless it is there.
func (v *live) writeVariant(path string, attrs map[uint64]index.Attr) error {
	if len(attrs) == 0 {
		return nil
	}
	if v.trust.forged.Load() {
		return errForged
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := writeIndex(path, func(w io.Writer) error { return index.Patch(w, v.index, attrs) }); err != nil {
		return fmt.Errorf("write index with inherited attributes: %w", err)
	}
	return nil
}
