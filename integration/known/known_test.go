package known_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
)

// write puts a tree on disk, out of its tars.
func write(t *testing.T, tree known.Tree) string {
	t.Helper()
	dir := t.TempDir()
	for layer := range 2 {
		b, err := images.KnownTar(tree, "data", layer, 2)
		if err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(bytes.NewReader(b))
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, h.Name)
			if h.Typeflag == tar.TypeDir {
				err = os.MkdirAll(path, 0o755)
			} else {
				var content []byte
				if content, err = io.ReadAll(r); err == nil {
					err = os.WriteFile(path, content, 0o600)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return filepath.Join(dir, "data")
}

func pass(tree known.Tree, dir string) known.Report {
	l := known.New(tree, dir, known.Options{Readers: 3})
	l.Pass()
	return l.Report()
}

// Readers see each way in which a file can be other than it should be.
func TestReadersSee(t *testing.T) {
	tree := known.Tree{Seed: 1, Files: 9, Size: 100_000}
	dir := write(t, tree)
	if r := pass(tree, dir); r.Failed != 0 || r.Wrong != 0 || !r.Passed || r.Cold != 9 ||
		r.Bytes != tree.Bytes() {
		t.Fatalf("whole: %+v", r)
	}
	if r := pass(known.Tree{Seed: 2, Files: 9, Size: 100_000}, dir); r.Wrong != r.Reads ||
		len(r.Trouble) == 0 {
		t.Errorf("of another seed: %+v", r)
	}
	change := func(file int, fn func(f *os.File) error) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, tree.Name(file)), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := fn(f); err != nil {
			t.Fatal(err)
		}
	}
	change(3, func(f *os.File) error {
		b := make([]byte, 1)
		tree.Fill(b, 3, 70_000)
		b[0] ^= 4
		_, err := f.WriteAt(b, 70_000)
		return err
	})
	if r := pass(tree, dir); r.Wrong != 1 || r.Failed != 0 {
		t.Errorf("with a flipped bit: %+v", r)
	}
	change(5, func(f *os.File) error { return f.Truncate(tree.Length(5) - 1) })
	if r := pass(tree, dir); r.Wrong != 1 || r.Failed != 1 {
		t.Errorf("with a short file: %+v", r)
	}
	if err := os.Remove(filepath.Join(dir, tree.Name(7))); err != nil {
		t.Fatal(err)
	}
	if r := pass(tree, dir); r.Wrong != 1 || r.Failed != 3 { // the file takes two reads
		t.Errorf("with a missing file: %+v", r)
	}
}

// A load reads a new file at every step and no faster, and stops when told to.
func TestLoad(t *testing.T) {
	tree := known.Tree{Seed: 1, Files: 100, Size: 10_000}
	l := known.New(tree, write(t, tree),
		known.Options{Readers: 2, Step: 20 * time.Millisecond, Pause: time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	l.Run(ctx)
	r := l.Report()
	if r.Cold < 2 || r.Cold > 16 || r.Reads < int64(r.Cold) || r.Failed+r.Wrong != 0 || r.Passed {
		t.Errorf("%+v", r)
	}
}

// A read that does not end is seen while it lasts.
func TestHang(t *testing.T) {
	tree := known.Tree{Seed: 1, Files: 1, Size: 10_000}
	dir := t.TempDir()
	path := filepath.Join(dir, tree.Name(0))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := mkfifo(path); err != nil {
		t.Fatal(err)
	}
	l := known.New(tree, dir, known.Options{Readers: 1})
	done := make(chan struct{})
	go func() { defer close(done); l.Pass() }()
	time.Sleep(100 * time.Millisecond)
	if r := l.Report(); r.Longest < 50*time.Millisecond || r.Reads != 0 {
		t.Errorf("%+v", r)
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	<-done
	if r := l.Report(); r.Failed != 1 {
		t.Errorf("a file that cannot be read at an offset: %+v", r)
	}
}

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }

func TestParseTree(t *testing.T) {
	want := known.Tree{Seed: 7, Files: 3, Size: 1000}
	if got, err := known.ParseTree(want.String()); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "1,2", "a,1,1000", "1,b,1000", "1,1,c", "1,0,100",
		"1,100,100"} {
		if got, err := known.ParseTree(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}
