// Package tartreetest tells whether two trees of files are the same: one that
// containerd has unpacked, one that is mounted, or one of nodes over a tar. It is for
// tests.
//
// A tree is read into a Listing, and two listings are compared by Diff. Nothing is
// shared between calls.
package tartreetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Entry is what a tree says about one path.
type Entry struct {
	Mode     uint32 // st_mode
	UID, GID uint32
	Size     int64 // regular files only
	Mtime    time.Time
	Rdev     uint64 // devices only
	Target   string // symbolic links only
	Xattrs   map[string]string
	Content  [sha256.Size]byte // digest of a regular file's content
	Group    string            // the first path, in order, of the same inode

	// Elsewhere says that the device is not that of the tree's root.
	Elsewhere bool

	// AnyMtime says that Mtime depends on when the tree was unpacked.
	AnyMtime bool
}

// Listing holds a tree's entries by path; the root is ".".
type Listing map[string]Entry

// Unpack unpacks a tar into the empty directory dir, as containerd's overlayfs
// snapshotter does with a layer that has the given directories below it.
func Unpack(ctx context.Context, tar io.Reader, dir string, parents ...string) error {
	_, err := archive.Apply(ctx, dir, tar,
		archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(parents))
	return err
}

// List reads the directory dir through the kernel. What is listed in its directory and is not
// there has Mode 0: so overlayfs shows a whiteout in a directory that only one layer has.
func List(dir string) (Listing, error) {
	l := Listing{}
	groups := map[uint64]string{}
	var root unix.Stat_t
	if err := unix.Lstat(dir, &root); err != nil {
		return nil, fmt.Errorf("lstat %s: %w", dir, err)
	}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(p, &st)
		if errors.Is(err, unix.ENOENT) {
			l.add(name, Entry{Group: name, AnyMtime: true})
			return nil
		}
		if err != nil {
			return fmt.Errorf("lstat %s: %w", p, err)
		}
		e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: time.Unix(st.Mtim.Unix()),
			Elsewhere: st.Dev != root.Dev}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			e.Size = st.Size
			e.Content, err = digest(p)
		case unix.S_IFLNK:
			e.Target, err = os.Readlink(p)
		case unix.S_IFCHR, unix.S_IFBLK:
			e.Rdev = st.Rdev
		}
		if err != nil {
			return err
		}
		if e.Xattrs, err = xattrs(p); err != nil {
			return err
		}
		e.Group = name
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first, ok := groups[st.Ino]; ok {
				e.Group = first
			}
			groups[st.Ino] = e.Group
		}
		l.add(name, e)
		return nil
	})
	return l, err
}

// add marks what carries the time of its unpacking: the root, and whiteouts.
func (l Listing) add(name string, e Entry) {
	white := e.Mode == unix.S_IFCHR && e.Rdev == 0
	e.AnyMtime = e.AnyMtime || white || name == "."
	l[name] = e
}

// UnpackedSince marks the directories whose time is that of unpacking: after start, and
// not in the future. These are the ones that no entry of the tar names, or whose entry's
// path leads elsewhere at the end of the tar.
func (l Listing) UnpackedSince(start time.Time) {
	const clockTick = time.Second // the kernel's clock of inodes lags behind
	for name, e := range l {
		isDir := e.Mode&unix.S_IFMT == unix.S_IFDIR
		if isDir && e.Mtime.After(start.Add(-clockTick)) && !e.Mtime.After(time.Now()) {
			e.AnyMtime = true
			l[name] = e
		}
	}
}

func digest(p string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(p)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	return digestOf(f)
}

func digestOf(r io.Reader) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

func xattrs(p string) (map[string]string, error) {
	buf := make([]byte, 1<<17)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return nil, fmt.Errorf("list xattrs of %s: %w", p, err)
	}
	var m map[string]string
	for key := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if key == "" {
			continue
		}
		n, err := unix.Lgetxattr(p, key, buf)
		if err != nil {
			return nil, fmt.Errorf("xattr %s of %s: %w", key, p, err)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[key] = string(buf[:n])
	}
	return m, nil
}

// Nodes reads a tree of nodes whose files lie in device.
func Nodes(root *erofs.Node, device io.ReaderAt) (Listing, error) {
	l := Listing{}
	groups := map[*erofs.Node]string{}
	var visit func(name string, n *erofs.Node) error
	visit = func(name string, n *erofs.Node) error {
		e := Entry{
			Mode: n.Mode, UID: n.UID, GID: n.GID, Mtime: time.Unix(n.Mtime.Unix(),
				int64(n.Mtime.Nanosecond())),
			Rdev: n.Rdev, Target: n.Target, Xattrs: n.Xattrs, AnyMtime: n.Implicit, Group: name,
		}
		if first, ok := groups[n]; ok {
			e.Group = first
		}
		groups[n] = e.Group
		if n.Mode&unix.S_IFMT == unix.S_IFREG {
			var err error
			e.Size = n.Size
			if e.Content, err = digestOf(NewReader(n, device)); err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
		}
		l.add(name, e)
		for _, child := range slices.Sorted(maps.Keys(n.Children)) {
			if err := visit(filepath.Join(name, child), n.Children[child]); err != nil {
				return err
			}
		}
		return nil
	}
	return l, visit(".", root)
}

// NewReader reads a file's content through its extents.
func NewReader(n *erofs.Node, device io.ReaderAt) io.Reader {
	var parts []io.Reader
	at := int64(0)
	hole := func(to int64) {
		if to > at {
			parts = append(parts, io.LimitReader(zero{}, to-at))
		}
	}
	for _, e := range n.Extents {
		hole(e.File)
		if e.Data != nil {
			parts = append(parts, strings.NewReader(string(e.Data)))
		} else {
			parts = append(parts, io.NewSectionReader(device, e.Device, e.Size))
		}
		at = e.File + e.Size
	}
	hole(n.Size)
	return io.MultiReader(parts...)
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Diff describes how got differs from want, a line for each difference, in the
// order of paths. Times are not compared where either side has AnyMtime.
func Diff(want, got Listing) []string {
	var d []string
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		w, inWant := want[name]
		g, inGot := got[name]
		switch {
		case !inGot:
			d = append(d, fmt.Sprintf("%q is missing", name))
			continue
		case !inWant:
			d = append(d, fmt.Sprintf("%q should not be there", name))
			continue
		}
		differ := func(what string, w, g any) {
			d = append(d, fmt.Sprintf("%q: %s is %v, want %v", name, what, g, w))
		}
		if w.Mode != g.Mode {
			differ("mode", fmt.Sprintf("%o", w.Mode), fmt.Sprintf("%o", g.Mode))
		}
		if w.UID != g.UID || w.GID != g.GID {
			differ("owner", fmt.Sprint(w.UID, ":", w.GID), fmt.Sprint(g.UID, ":", g.GID))
		}
		if w.Size != g.Size {
			differ("size", w.Size, g.Size)
		}
		if !w.AnyMtime && !g.AnyMtime && !w.Mtime.Equal(g.Mtime) {
			differ("mtime", w.Mtime.UTC(), g.Mtime.UTC())
		}
		if w.Rdev != g.Rdev {
			differ("device number", w.Rdev, g.Rdev)
		}
		if w.Target != g.Target {
			differ("target", fmt.Sprintf("%q", w.Target), fmt.Sprintf("%q", g.Target))
		}
		if !maps.Equal(w.Xattrs, g.Xattrs) {
			differ("xattrs", fmt.Sprintf("%q", w.Xattrs), fmt.Sprintf("%q", g.Xattrs))
		}
		if w.Content != g.Content {
			differ("content", fmt.Sprintf("%x", w.Content[:8]), fmt.Sprintf("%x", g.Content[:8]))
		}
		if w.Elsewhere != g.Elsewhere {
			differ("on another device", w.Elsewhere, g.Elsewhere)
		}
		if w.Group != g.Group {
			differ("inode of", w.Group, g.Group)
		}
	}
	return d
}
