package tartree

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Names that mean something else than a file, from the OCI image specification,
// and what overlayfs has in their place: for a whiteout a character device 0/0.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"

	xattrOpaque = "trusted.overlay.opaque"
	opaqueYes   = "y"
	paxXattr    = "SCHILY.xattr."
	linkPerm    = 0o777
)

// ErrLowest is wrapped by the error for a whiteout of what the layer itself has. containerd
// unpacks such a layer where no layer is below, and refuses it elsewhere.
var ErrLowest = errors.New("the layer hides what it has itself")

var errWhiteout = errors.New("invalid name of a whiteout")

// place is a directory that an entry lies in.
type place struct {
	name string // as the entry has it
	path string // in the tree
	dir  *erofs.Node
}

// apply does what containerd does with one entry, in its order.
func (s *scanner) apply(hdr *tar.Header) error {
	if err := s.meter.entry(); err != nil {
		return err
	}
	var data stored
	if hdr.Typeflag != tar.TypeXGlobalHeader { // whose contents archive/tar has read
		var err error
		if data, err = locate(hdr, s.tape); err != nil {
			return err
		}
		s.tape.data(data.size, nil)
	}
	parent, base := path.Split(hdr.Name)
	if base == "" || base == "." || base == ".." {
		return nil // the root, since the name is clean
	}
	mtime := boundTime(hdr.ModTime)
	in, err := s.enter(parent, mtime)
	if err != nil {
		return err
	}
	name, white := strings.CutPrefix(base, whiteoutPrefix)
	if base == whiteoutOpaque {
		return s.tree.storeXattr(in.dir, xattrOpaque, opaqueYes)
	}
	if len(in.path)+1+len(name) > maxPath {
		return unix.ENAMETOOLONG
	}
	if white {
		return s.whiteout(hdr, in.dir, name, mtime)
	}
	if old := in.dir.Children[name]; old != nil && (!isDir(old) || hdr.Typeflag != tar.TypeDir) {
		delete(in.dir.Children, name)
		s.last = place{}
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	n, err := s.make(hdr, in, name, data)
	if err != nil {
		return err
	}
	if isLink(n) {
		s.last = place{} // its name can be one that another link's target goes through
	}
	return s.attributes(hdr, n, mtime)
}

// enter returns the directory with the name that an entry has for it; the
// missing ones are made.
func (s *scanner) enter(name string, mtime time.Time) (place, error) {
	if s.last.dir != nil && s.last.name == name {
		return s.last, nil
	}
	p, err := s.tree.resolve(name)
	if err != nil {
		return place{}, fmt.Errorf("directory %q: %w", name, err)
	}
	dir, err := s.tree.makeParent(p, mtime)
	if err != nil {
		return place{}, err
	}
	s.last = place{name: name, path: p, dir: dir}
	return s.last, nil
}

// whiteout makes the device that hides a name of the layers below. It fails, as
// mknod(2) does, where the layer has an entry of that name already.
func (s *scanner) whiteout(hdr *tar.Header, dir *erofs.Node, name string, mtime time.Time) error {
	if name == "" || name == "." || name == ".." {
		return errWhiteout
	}
	n, err := s.tree.create(dir, name, unix.S_IFCHR)
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%w: %w", ErrLowest, err)
	}
	if err != nil {
		return fmt.Errorf("make a whiteout: %w", err)
	}
	s.tree.chown(n, hdr.Uid, hdr.Gid)
	n.Mtime = mtime
	return nil
}

// make gives the entry's name an inode: a new one, that of a hard link's
// target, or of the directory that is there.
func (s *scanner) make(hdr *tar.Header, in place, name string, data stored) (*erofs.Node, error) {
	dir := in.dir
	switch hdr.Typeflag {
	case tar.TypeDir:
		return s.makeDir(hdr, dir, name)
	case tar.TypeReg, tar.TypeGNUSparse:
		n, err := s.tree.create(dir, name, unix.S_IFREG)
		if err != nil {
			return nil, err
		}
		s.tape.data(data.size, s.write)
		return n, s.content.begin(n, hdr.Size, data, s.tape.off, isKept(in.path, name), s.tree)
	case tar.TypeChar:
		return s.makeDevice(hdr, dir, name, unix.S_IFCHR)
	case tar.TypeBlock:
		return s.makeDevice(hdr, dir, name, unix.S_IFBLK)
	case tar.TypeFifo:
		return s.makeDevice(hdr, dir, name, unix.S_IFIFO)
	case tar.TypeLink:
		n, err := s.linkTarget(hdr.Linkname)
		if err != nil {
			return nil, fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
		}
		return n, s.tree.enter(dir, name, n)
	case tar.TypeSymlink:
		return s.makeLink(hdr, dir, name)
	}
	return nil, fmt.Errorf("entries of type %q are not supported", hdr.Typeflag)
}

func (s *scanner) makeDir(hdr *tar.Header, dir *erofs.Node, name string) (*erofs.Node, error) {
	if err := s.meter.names(len(hdr.Name) + dirTimeSize); err != nil {
		return nil, err
	}
	s.dirs = append(s.dirs, dirTime{strings.Clone(hdr.Name), boundTime(hdr.ModTime)})
	if n := dir.Children[name]; n != nil {
		n.Implicit = false
		return n, nil
	}
	return s.tree.create(dir, name, unix.S_IFDIR)
}

// makeDevice keeps of the device numbers the 12 and 20 bits that mknod(2) takes.
func (s *scanner) makeDevice(
	hdr *tar.Header, dir *erofs.Node, name string, typ uint32,
) (*erofs.Node, error) {
	major, minor := hdr.Devmajor, hdr.Devminor
	if major < 0 || major > math.MaxUint32 || minor < 0 || minor > math.MaxUint32 {
		return nil, fmt.Errorf("device number %d:%d is out of range", major, minor)
	}
	n, err := s.tree.create(dir, name, typ)
	if err == nil && typ != unix.S_IFIFO {
		n.Rdev = unix.Mkdev(uint32(major)&(1<<12-1), uint32(minor)&(1<<20-1))
	}
	return n, err
}

func (s *scanner) makeLink(hdr *tar.Header, dir *erofs.Node, name string) (*erofs.Node, error) {
	switch {
	case hdr.Linkname == "":
		return nil, fmt.Errorf("symbolic link without a target: %w", unix.ENOENT)
	case len(hdr.Linkname) > maxPath:
		return nil, fmt.Errorf("symbolic link's target: %w", unix.ENAMETOOLONG)
	}
	n, err := s.tree.create(dir, name, unix.S_IFLNK|linkPerm)
	if err == nil {
		n.Target, err = s.tree.keep(hdr.Linkname)
	}
	return n, err
}

// linkTarget finds a hard link's target. Links on the way to it are
// followed, but not if it is one itself. A last name of "." or "..", or an empty one, is
// taken as text: "file/" is the file.
func (s *scanner) linkTarget(target string) (*erofs.Node, error) {
	parent, base := path.Split(target)
	p, err := s.tree.resolve(parent)
	if err != nil {
		return nil, err
	}
	n, err := s.tree.lookup(path.Join(p, base))
	if err == nil && isDir(n) {
		err = unix.EPERM
	}
	return n, err
}

// attributes sets what every kind of inode has. A hard link's entry sets them
// for all its names.
func (s *scanner) attributes(hdr *tar.Header, n *erofs.Node, mtime time.Time) error {
	s.tree.chown(n, hdr.Uid, hdr.Gid)
	for key, value := range hdr.PAXRecords {
		key, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if err := s.tree.setxattr(n, key, value); err != nil {
			return fmt.Errorf("xattr %q: %w", key, err)
		}
	}
	chmod(n, uint32(hdr.Mode))
	n.Mtime = mtime
	return nil
}

// boundTime puts a time that does not fit into an int64 of nanoseconds since 1970
// to 1970, as containerd does.
func boundTime(t time.Time) time.Time {
	first, last := time.Unix(0, 0), time.Unix(0, math.MaxInt64)
	if t.Before(first) || t.After(last) {
		return first
	}
	return t
}
