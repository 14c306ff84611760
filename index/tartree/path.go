package tartree

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Linux's limits for a path, a name, and the links followed in one lookup.
const (
	maxPath    = unix.PathMax - 1 // without the final zero
	maxName    = 255
	maxFollows = 40
)

// maxLinks is how many links continuity's fs.RootPath walks before it gives up.
const maxLinks = 255

// resolve turns a path of the tar into the absolute path in the tree that
// it stands for, with all symbolic links resolved, as continuity's fs.RootPath
// does with an unpacked layer: links and ".." cannot leave the root, what does
// not exist is taken as it is, and a link's target is put in the place of its name
// as text, so that ".." behind it removes names and does not go up directories.
//
// One thing cannot be the same: a path that RootPath asks the kernel about can still have a
// link in it, in the text of a target, and where that leads out of the root the kernel
// looks at the host's files. Here nothing exists outside of the root.
func (t *tree) resolve(p string) (string, error) {
	if !strings.Contains(p, "..") {
		clean := path.Join("/", p)
		if plain, err := t.plain(clean); plain || err != nil {
			return clean, err
		}
	}
	return Resolve(p, t.readlink)
}

// Resolve is resolve in any tree. readlink returns the target of the symbolic link at a clean,
// absolute path, "" for what is not a link and for what does not exist.
func Resolve(p string, readlink func(path string) (string, error)) (string, error) {
	switch {
	case p == "":
		return "/", nil
	case len(p) > maxPath:
		return "", unix.ENAMETOOLONG
	}
	for links := 0; ; {
		before := links
		next, err := resolveOnce(p, &links, readlink)
		if err != nil {
			return "", err
		}
		if links == before {
			clean := path.Join("/", next)
			if clean == next {
				return clean, nil
			}
			next = clean
		}
		p = next
	}
}

// plain reports whether no symbolic link lies on the clean, absolute path p.
func (t *tree) plain(p string) (bool, error) {
	if len(p) > maxPath {
		return false, unix.ENAMETOOLONG
	}
	n := t.root
	for rest := p[1:]; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if !isDir(n) {
			return false, unix.ENOTDIR
		}
		if len(name) > maxName {
			return false, unix.ENAMETOOLONG
		}
		n = n.Children[name]
		if n == nil {
			return true, nil
		}
		if isLink(n) {
			return false, nil
		}
	}
	return true, nil
}

// resolveOnce goes through p from left to right and replaces each name that
// is a link by its target, once, adding to links for each.
func resolveOnce(p string, links *int, readlink func(path string) (string, error)) (string, error) {
	done := ""
	if p[0] == '/' {
		done = "/"
	}
	for rest := p; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if name == "" {
			continue
		}
		if *links > maxLinks {
			return "", unix.ELOOP
		}
		at := path.Join("/", done, name)
		target, err := readlink(at)
		switch {
		case err != nil:
			return "", err
		case target == "":
			done = at
			continue
		}
		*links++
		if done == "" || target[0] == '/' {
			done = target
		} else {
			done = path.Join(done, target)
		}
	}
	return done, nil
}

// readlink returns "" for what is not a link and for what does not exist.
func (t *tree) readlink(p string) (string, error) {
	n, err := t.lookup(p)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil || !isLink(n) {
		return "", err
	}
	return n.Target, nil
}

// lookup finds the inode at an absolute path as lstat(2) would: links are followed
// except at the end. What lies outside of the root does not exist.
func (t *tree) lookup(p string) (*erofs.Node, error) {
	if len(p) > maxPath {
		return nil, unix.ENAMETOOLONG
	}
	follows := 0
	way := append(t.way[:0], t.root) // directories from the root on, for ".."
	defer func() { t.way = way[:0] }()
	for rest := p; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if err := t.meter.step(); err != nil {
			return nil, err
		}
		dir := way[len(way)-1]
		switch {
		case !isDir(dir):
			return nil, unix.ENOTDIR
		case name == "" || name == ".":
			continue
		case name == ".." && len(way) == 1:
			return nil, unix.ENOENT
		case name == "..":
			way = way[:len(way)-1]
			continue
		case len(name) > maxName:
			return nil, unix.ENAMETOOLONG
		}
		n := dir.Children[name]
		if n == nil {
			return nil, unix.ENOENT
		}
		if !isLink(n) || rest == "" {
			way = append(way, n)
			continue
		}
		if follows++; follows > maxFollows {
			return nil, unix.ELOOP
		}
		if n.Target[0] == '/' {
			return nil, unix.ENOENT
		}
		// The kernel has no limit for the sum; without one a few links
		// could make texts of megabytes here.
		if rest = n.Target + "/" + rest; len(rest) > 4*maxPath {
			return nil, unix.ENAMETOOLONG
		}
	}
	return way[len(way)-1], nil
}

// makeParent returns the directory at p, which resolve returned, and makes
// the missing ones, marked as implicit and with the time mtime.
func (t *tree) makeParent(p string, mtime time.Time) (*erofs.Node, error) {
	dir := t.root
	for rest := p[1:]; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		n := dir.Children[name]
		if n == nil {
			err := t.meter.entry()
			if err == nil {
				n, err = t.create(dir, name, unix.S_IFDIR)
			}
			if err != nil {
				return nil, fmt.Errorf("make directory %q: %w", strings.TrimSuffix(p[:len(p)-len(rest)], "/"), err)
			}
			n.Implicit = true
			n.Mtime = mtime
			chmod(n, 0o755)
		}
		if !isDir(n) {
			return nil, fmt.Errorf("make directory %q: %w", p, unix.ENOTDIR)
		}
		dir = n
	}
	return dir, nil
}
