package erofs

import (
	"fmt"
	"slices"
	"strings"
)

// maxPath is the longest path that the kernel takes: PATH_MAX without the NUL.
const maxPath = 4095

// Paths calls fn with the path of each of the directories, from "/" on, until fn returns an error,
// which it returns. It reads each directory above them once, however many are asked for.
func (t *Tree) Paths(dirs []uint64, fn func(nid uint64, path string) error) error {
	p := pathFinder{t: t, dirs: map[uint64]dirName{}}
	if err := p.climb(dirs); err != nil {
		return err
	}
	if err := p.name(); err != nil {
		return err
	}
	for _, nid := range dirs {
		path, err := p.path(nid)
		if err != nil {
			return fmt.Errorf("path of directory %d: %w", nid, err)
		}
		if err := fn(nid, path); err != nil {
			return err
		}
	}
	return nil
}

// pathFinder knows the directories on the ways to some directories.
type pathFinder struct {
	t    *Tree
	dirs map[uint64]dirName // but for the root
}

// dirName is the place of a directory.
type dirName struct {
	parent uint64
	name   string
}

// climb finds the parents, up to the root.
func (p *pathFinder) climb(dirs []uint64) error {
	for _, nid := range dirs {
		for nid != rootNid {
			if _, known := p.dirs[nid]; known {
				break
			}
			parent, err := p.t.Lookup(nid, "..")
			if err != nil {
				return fmt.Errorf("parent of directory %d: %w", nid, err)
			}
			p.dirs[nid] = dirName{parent: parent}
			nid = parent
		}
	}
	return nil
}

// name finds the names in the parents.
func (p *pathFinder) name() error {
	parents := map[uint64]bool{}
	for _, d := range p.dirs {
		parents[d.parent] = true
	}
	for parent := range parents {
		err := p.t.ReadDir(parent, 0, func(e Dirent) bool {
			if d, ok := p.dirs[e.Nid]; ok && d.parent == parent && e.Name != "." && e.Name != ".." {
				p.dirs[e.Nid] = dirName{parent, e.Name}
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *pathFinder) path(nid uint64) (string, error) {
	var names []string
	size := 0
	for nid != rootNid {
		d := p.dirs[nid]
		if d.name == "" {
			return "", corrupt("directory %d is not in its parent", nid)
		}
		if size += 1 + len(d.name); size > maxPath {
			return "", corrupt("longer than %d bytes", maxPath)
		}
		names = append(names, d.name)
		nid = d.parent
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/"), nil
}
