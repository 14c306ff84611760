package tartree

import (
	"errors"
	"fmt"
	"math"
)

// ErrLimit is wrapped by the error of a tar that asks for more than Limits
// allows.
var ErrLimit = errors.New("over the limit")

// ErrMemory is wrapped by the error of a tar for whose tree Limits.Memory had none.
var ErrMemory = errors.New("no memory for the tree")

// Limits bounds what a tar can make Scan keep in memory, and the work that it can
// cause beyond reading the stream. A zero field stands for its default.
type Limits struct {
	// Entries counts the tar's entries and the directories that they imply.
	// A node costs about 300 bytes of memory; default 2,000,000.
	Entries int

	// NameBytes is the sum of all names, link targets and xattrs that are kept,
	// of the names of directory entries, and of 48 bytes for each xattr of an inode;
	// default 256 MiB.
	NameBytes int64

	// XattrBytes is the sum of the xattrs of one inode, names and values;
	// default 128 KiB. (EROFS has room for 256 KiB.)
	XattrBytes int64

	// TreeBytes is the sum of file data that is kept in the tree because it
	// cannot be mapped in place; default 64 MiB.
	TreeBytes int64

	// Extents counts the pieces of all sparse files; default 1,000,000.
	Extents int

	// FileSize is the size of the largest file, holes included; default 16 TiB,
	// ext4's own limit.
	FileSize int64

	// Memory is asked for more bytes before they are taken, some hundred kilobytes at a time. It
	// may wait, and fails where there are not so many. nil: as many as there are.
	Memory func(bytes int64) error

	// Steps counts the names looked up while symbolic links in entries' paths
	// are resolved; default 1<<28, which takes some ten seconds.
	Steps int64
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	if l.Entries <= 0 {
		l.Entries = 2_000_000
	}
	if l.Extents <= 0 {
		l.Extents = 1_000_000
	}
	def(&l.NameBytes, 256<<20)
	def(&l.XattrBytes, 128<<10)
	def(&l.TreeBytes, 64<<20)
	def(&l.FileSize, 16<<40)
	l.FileSize = min(l.FileSize, math.MaxInt64/2) // offsets are rounded up
	def(&l.Steps, 1<<28)
	return l
}

// Take asks for memory: see Memory.
func (l *Limits) Take(bytes int64) error {
	if l.Memory == nil {
		return nil
	}
	if err := l.Memory(bytes); err != nil {
		return fmt.Errorf("%w: %w", ErrMemory, err)
	}
	return nil
}

// What the pieces of a tree take in memory, bytes: in the tree, in a directory's map, and while the
// index is written.
const (
	entryMemory  = 384
	extentMemory = 64
	// memoryStep is how much is taken before Limits.Memory is asked.
	memoryStep = 512 << 10
)

// meter counts what has been used of Limits. It only grows: what a later entry
// replaces stays counted.
type meter struct {
	lim                         Limits
	entries, extents            int
	nameBytes, treeBytes, steps int64
	untold                      int64 // bytes that Limits.Memory was not yet asked for
}

// memory notes that n more bytes are about to be taken.
func (m *meter) memory(n int64) error {
	if m.untold += n; m.untold < memoryStep {
		return nil
	}
	n, m.untold = m.untold, 0
	return m.lim.Take(n)
}

func over(field string, limit int64) error {
	return fmt.Errorf("%w of %d (Limits.%s)", ErrLimit, limit, field)
}

func (m *meter) entry() error {
	if m.entries++; m.entries > m.lim.Entries {
		return over("Entries", int64(m.lim.Entries))
	}
	return m.memory(entryMemory)
}

func (m *meter) names(n int) error {
	if m.nameBytes += int64(n); m.nameBytes > m.lim.NameBytes {
		return over("NameBytes", m.lim.NameBytes)
	}
	return m.memory(int64(n))
}

func (m *meter) tree(n int64) error {
	if n > m.lim.TreeBytes-m.treeBytes {
		return over("TreeBytes", m.lim.TreeBytes)
	}
	m.treeBytes += n
	return m.memory(n)
}

func (m *meter) pieces(n int) error {
	if n > m.lim.Extents-m.extents {
		return over("Extents", int64(m.lim.Extents))
	}
	m.extents += n
	return m.memory(int64(n) * extentMemory)
}

func (m *meter) step() error {
	if m.steps++; m.steps > m.lim.Steps {
		return over("Steps", m.lim.Steps)
	}
	return nil
}
