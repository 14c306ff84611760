package erofs

import (
	"strings"
	"syscall"
)

// maxLinks bounds the symbolic links on the way to a file, as Linux does.
const maxLinks = 40

// maxRest bounds the text of a way, which symbolic links make longer.
const maxRest = 4 * 4096

// Lstat is lstat(2) of a path from the root on: links on the way are followed, and lead nowhere
// where they lead out of the tree.
func (t *Tree) Lstat(path string) (Inode, error) {
	ino, err := t.Inode(t.Root())
	way, links := []Inode{ino}, 0 // from the root on, for ".."
	for rest := path; err == nil && rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		dir := way[len(way)-1]
		switch {
		case dir.Mode&modeType != modeDir:
			return Inode{}, syscall.ENOTDIR
		case name == "" || name == ".":
			continue
		case name == ".." && len(way) == 1:
			return Inode{}, syscall.ENOENT
		case name == "..":
			way = way[:len(way)-1]
			continue
		}
		var nid uint64
		if nid, err = t.Lookup(dir.Nid, name); err != nil {
			break
		}
		if ino, err = t.Inode(nid); err != nil || ino.Mode&modeType != modeSymlink ||
			rest == "" {
			way = append(way, ino)
			continue
		}
		var target string
		target, err = t.Readlink(nid)
		switch links++; {
		case err != nil:
		case links > maxLinks:
			err = syscall.ELOOP
		case strings.HasPrefix(target, "/"):
			err = syscall.ENOENT
		case len(target)+len(rest) > maxRest:
			err = syscall.ENAMETOOLONG
		default:
			rest = target + "/" + rest
		}
	}
	if err != nil {
		return Inode{}, err
	}
	return way[len(way)-1], nil
}
