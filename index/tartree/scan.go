// Package tartree reads a layer's tar and makes the tree of inodes that unpacking
// it would make.
//
// The model is containerd's overlayfs snapshotter: the tree is what
// archive.Apply (containerd's pkg/archive) leaves in the empty directory of an
// overlay's upper layer, with whiteouts as overlayfs has them. Where containerd
// refuses a tar, so does Scan. The data of regular files stays in the tar; the tree
// says where it lies.
//
//	stream ─▶ tape ─▶ archive/tar ─▶ scanner (containerd's steps) ─▶ tree (Linux's calls)
//	            └──── data ────────▶ content (what the tree keeps)
//
// Known differences:
//   - Directories that no entry names, and whiteouts, have the time at which
//     containerd unpacked them; here that of the entry that made them. So do
//     directories whose entry's path, at the end of the tar, leads elsewhere.
//   - containerd gives a directory that no entry names the attributes of the
//     layer below. A scan does not know that layer: such directories are root's with mode
//     0755, and marked as Implicit. An entry that names it later clears the mark, and with it
//     the xattrs that containerd would have kept from below, and the group that directories
//     implied in it would have from there.
//   - Where no layer is below, containerd unpacks without overlayfs: a whiteout removes what
//     the layer has of that name, and is not there; an opaque marker removes what the tar has
//     implied there. See index.Bare.
//   - The root directory is not the tar's to describe: 0755, root's, time 0.
//   - GNU's old sparse files (type S) are read; containerd refuses them.
//   - No path ever leads to the host's files (see resolve).
//   - The limits are those of Limits and EROFS; containerd's are those of its disk.
//
// A scan runs in the caller's goroutine; scans share nothing.
package tartree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Scan reads an uncompressed tar up to its end marker, or the end of r, and returns
// the root of its tree. What follows the end marker is left in r. Extents are at
// offsets in r, multiples of erofs.BlockSize; their lists and file offsets are as
// erofs.Node demands, and each extent begins at a multiple of erofs.BlockSize in
// the file and ends at one or at the file's end.
//
// An error names the entry. It wraps ErrLimit where the tar exceeds lim,
// tar.ErrHeader where it is malformed, io.ErrUnexpectedEOF where it is cut off, the
// errno where a file system would refuse the entry, and r's own error.
func Scan(r io.Reader, lim Limits) (*erofs.Node, error) {
	s := newScanner(r, lim)
	last := ""
	for {
		hdr, err := s.tar.Next()
		switch {
		case err == io.EOF:
			if err := s.retime(); err != nil {
				return nil, err
			}
			return s.tree.root, nil
		case errors.Is(err, tar.ErrInsecurePath) && hdr != nil:
			// Of no concern here: paths cannot leave the root.
		case err != nil && s.tape.dataLeft > 0:
			return nil, fmt.Errorf("read the data of tar entry %q: %w", last, err)
		case err != nil:
			return nil, fmt.Errorf("read the tar header behind entry %q, before offset %d: %w", last, s.tape.off, err)
		}
		hdr.Name = path.Clean(hdr.Name)
		last = hdr.Name
		if err := s.apply(hdr); err != nil {
			return nil, fmt.Errorf("tar entry %q: %w", hdr.Name, err)
		}
	}
}

type scanner struct {
	tape    *tape
	tar     *tar.Reader
	meter   meter
	tree    *tree
	content content
	write   func(off int64, p []byte) // content.write, bound once

	last place // the directory of the entry before, if it is still there

	dirs []dirTime
}

// dirTime is the time of a directory, which containerd sets at the end.
type dirTime struct {
	name  string
	mtime time.Time
}

// dirTimeSize is what a dirTime counts for beside its name.
const dirTimeSize = 40

func newScanner(r io.Reader, lim Limits) *scanner {
	s := &scanner{tape: &tape{r: r}, meter: meter{lim: lim.withDefaults()}}
	s.tar = tar.NewReader(s.tape)
	s.tree = newTree(&s.meter)
	s.write = s.content.write
	return s
}

// retime sets the times of directories once more, as containerd does at the
// end: whatever now lies where the entry of a directory was gets that entry's time, and
// where nothing lies, the tar is refused.
func (s *scanner) retime() error {
	for _, d := range s.dirs {
		p, err := s.tree.resolve(d.name)
		if err != nil {
			return fmt.Errorf("directory %q at the end of the tar: %w", d.name, err)
		}
		n, err := s.tree.lookup(p)
		if err != nil {
			return fmt.Errorf("directory %q at the end of the tar: %w", d.name, err)
		}
		n.Mtime = d.mtime
	}
	return nil
}
