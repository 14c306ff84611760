// Command probe is what the tests run on the other side: in containers, where
// it is the only program of an image, and as the child process that looks at a
// mounted tree. It is built static.
//
//	probe tree DIR                    lists the tree (tartreetest.Listing, as gob)
//	probe read DIR SEED COUNT         reads COUNT random ranges of the files below DIR,
//	                                  prints a digest of all that was read
//	probe load TREE DIR READERS STEP  reads files of a known.Tree below DIR, and checks them
//	                                  (load.go)
//	probe show PATH...                prints mode and, of files, digest of each
//	probe pause                       waits for SIGTERM or SIGINT
//	probe echo WORD...                prints the words
package main

import (
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/tartree/tartreetest"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("no command")
	}
	switch cmd, args := args[0], args[1:]; {
	case cmd == "tree" && len(args) == 1:
		l, err := list(args[0])
		if err != nil {
			return err
		}
		return gob.NewEncoder(os.Stdout).Encode(l)
	case cmd == "read" && len(args) == 3:
		seed, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return err
		}
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return read(args[0], seed, count)
	case cmd == "load":
		return load(args)
	case cmd == "pause":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
		<-c
		return nil
	case cmd == "show":
		for _, path := range args {
			if err := show(path); err != nil {
				return err
			}
		}
		return nil
	case cmd == "echo":
		fmt.Println(strings.Join(args, " "))
		return nil
	default:
		return fmt.Errorf("cannot %s with %d arguments", cmd, len(args))
	}
}

// list lists a tree. Hard links are told by device and inode number: overlayfs
// takes inode numbers from its layers, which may be file systems of their own
// and then have devices of their own.
func list(dir string) (tartreetest.Listing, error) {
	l, err := tartreetest.List(dir)
	if err != nil {
		return nil, err
	}
	groups := map[[2]uint64]string{}
	for _, name := range slices.Sorted(maps.Keys(l)) {
		e := l[name]
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			return nil, err
		}
		key := [2]uint64{st.Dev, st.Ino}
		if _, ok := groups[key]; !ok {
			groups[key] = name
		}
		e.Group = groups[key]
		l[name] = e
	}
	return l, nil
}

// show prints the mode of what lies at path, and the digest of a file.
func show(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		fmt.Println(st.Mode())
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	fmt.Printf("%s %x\n", st.Mode(), sha256.Sum256(b))
	return nil
}

// read reads count ranges, chosen by seed alone, and prints their digest: the
// same for every tree with the same files.
func read(dir string, seed uint64, count int) error {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s holds no files", dir)
	}
	r := rand.New(rand.NewPCG(seed, 0))
	h := sha256.New()
	for range count {
		path := files[r.IntN(len(files))]
		n, err := readRange(h, path, r)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		fmt.Fprintf(h, "%s %d\n", strings.TrimPrefix(path, dir), n)
	}
	fmt.Printf("%x\n", h.Sum(nil))
	return nil
}

// readRange copies a random range of a file to w and returns its length.
func readRange(w io.Writer, path string, r *rand.Rand) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() == 0 {
		return 0, nil
	}
	off := r.Int64N(info.Size())
	want := min(info.Size()-off, 1+r.Int64N(256<<10))
	n, err := io.Copy(w, io.NewSectionReader(f, off, want))
	if err == nil && n != want {
		err = fmt.Errorf("%d bytes at %d, want %d", n, off, want)
	}
	return n, err
}
