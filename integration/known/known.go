// Package known makes files whose every byte is known from their name alone,
// and readers that check every byte they get. Images are made of such files,
// containers read them while a node is mistreated: what they report says
// whether a read failed, was wrong, or waited, and for how long.
//
//	Tree ──▶ images.Known ──▶ registry ──▶ node ──▶ container: cmd/probe load ──▶ Load ──▶ Report
//
// The package runs inside containers too, so it knows neither nodes nor registries.
package known

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
)

// Tree describes the files; two trees with different seeds share no byte.
type Tree struct {
	Seed  uint64
	Files int
	Size  int64 // of the largest file; no two are of the same size
}

// String is the form that ParseTree takes: SEED,FILES,SIZE.
func (t Tree) String() string { return fmt.Sprintf("%d,%d,%d", t.Seed, t.Files, t.Size) }

// ParseTree parses what String has written.
func ParseTree(s string) (Tree, error) {
	f := strings.Split(s, ",")
	if len(f) != 3 {
		return Tree{}, fmt.Errorf("tree %q: want SEED,FILES,SIZE", s)
	}
	seed, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return Tree{}, fmt.Errorf("tree %q: %w", s, err)
	}
	files, err := strconv.Atoi(f[1])
	if err != nil {
		return Tree{}, fmt.Errorf("tree %q: %w", s, err)
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return Tree{}, fmt.Errorf("tree %q: %w", s, err)
	}
	if files < 1 || size < int64(files)*step {
		return Tree{}, fmt.Errorf("tree %q: no files, or too small ones", s)
	}
	return Tree{Seed: seed, Files: files, Size: size}, nil
}

// directories is how many directories hold the files.
const directories = 7

// step is the difference between the sizes of one file and the next.
const step = 37

// Name is the path of a file below the tree's directory.
func (t Tree) Name(file int) string { return fmt.Sprintf("d%02d/f%04d", file%directories, file) }

// Length is a file's size.
func (t Tree) Length(file int) int64 { return t.Size - int64(file)*step }

// Bytes is the size of all files together.
func (t Tree) Bytes() int64 {
	var n int64
	for i := range t.Files {
		n += t.Length(i)
	}
	return n
}

// Dirs are the tree's directories, sorted.
func (t Tree) Dirs() []string {
	var dirs []string
	for i := range min(t.Files, directories) {
		dirs = append(dirs, filepath.Dir(t.Name(i)))
	}
	return dirs
}

// block is the unit in which content is made: half of it is random, half
// repeats that, so that layers compress to about half.
const block = 4096

// Fill fills p with the file's bytes at off.
func (t Tree) Fill(p []byte, file int, off int64) {
	var b [block]byte
	for len(p) > 0 {
		t.block(&b, file, off/block)
		n := copy(p, b[off%block:])
		p, off = p[n:], off+int64(n)
	}
}

func (t Tree) block(b *[block]byte, file int, n int64) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[0:], t.Seed)
	binary.LittleEndian.PutUint64(seed[8:], uint64(file))
	binary.LittleEndian.PutUint64(seed[16:], uint64(n))
	const half = 512
	for i := 0; i < block; i += 2 * half {
		seed[24] = byte(i / half)
		_, _ = rand.NewChaCha8(seed).Read(b[i : i+half]) // it never fails
		copy(b[i+half:i+2*half], b[i:i+half])
	}
}
