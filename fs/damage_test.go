package fs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/store"
)

// hide makes a file unreadable for a reason that is not in it, until show is called.
func hide(t *testing.T, path string) (show func()) {
	t.Helper()
	if err := os.Rename(path, path+".hidden"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, path); err != nil { // ELOOP
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Rename(path+".hidden", path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnreadableForAWhile: a layer of which a file cannot be opened for a while is not damaged. It
// comes back by itself, with its readers, from the disk alone.
func TestUnreadableForAWhile(t *testing.T) {
	for _, name := range []string{"index", "layer.json", "device"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(nil)
			root, k := testDir(t), newKeeper(t)
			first := w.kept(root, FUSE, k)
			dirs := w.mountAll(first)
			readTree(t, dirs[0])
			stuck, read := openFile(t, filepath.Join(dirs[0], "etc/big"))
			w.close(first)
			folder := filepath.Join(root, "layers/sha256", w.layers[0].Encoded())
			show := hide(t, filepath.Join(folder, name))
			w.broken.Store(true)
			second := w.kept(root, FUSE, k)
			if _, err := second.Mount(t.Context(), w.layer(0), nil); err == nil {
				t.Error("mounted without " + name)
			}
			show()
			read()
			if got := stuck.wait(t); got != sum(bigFile) {
				t.Errorf("who had the file open reads %s, want %s", got, sum(bigFile))
			}
			w.mountAll(second)
			if got := readTree(t, dirs[0]); !strings.Contains(got, sum(bigFile)) {
				t.Errorf("wrong content:\n%s", got)
			}
		})
	}
}

// TestDamagedStays: a damaged layer that cannot be removed is an error, and is not downloaded again
// and again.
func TestDamagedStays(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	root := testDir(t)
	first := w.open(root, Auto)
	w.mountAll(first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(root, "layers/sha256", w.layers[0].Encoded())
	if err := os.Truncate(filepath.Join(folder, "index"), 100); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(folder, folder, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	fetched := w.fetched.Load()
	second := w.open(root, Auto)
	_, err := second.Mount(t.Context(), w.layer(0), nil)
	if err == nil || !strings.Contains(err.Error(), "cannot be removed") {
		t.Error(err)
	}
	if n := w.fetched.Load() - fetched; n > 0 {
		t.Errorf("%d bytes were downloaded", n)
	}
	if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if got := readTree(t, w.mountAll(second)[0]); !strings.Contains(got, sum(bigFile)) {
		t.Errorf("wrong content:\n%s", got)
	}
}

// TestDamageFoundTwice: who finds damage late does not remove what has come meanwhile.
func TestDamageFoundTwice(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	root := testDir(t)
	table := w.open(root, Auto)
	w.mountAll(table)
	if err := table.Unmount(w.layers[0]); err != nil {
		t.Fatal(err)
	}
	if err := table.removeDamaged(w.layers[0], store.ErrDamaged); err != nil {
		t.Fatal(err)
	}
	if _, err := table.stored(w.layers[0], ""); err != nil {
		t.Error(err)
	}
	gone := digest.FromString("gone")
	if err := table.removeDamaged(gone, store.ErrDamaged); err != nil {
		t.Error(err)
	}
}
