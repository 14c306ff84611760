package fs

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/keeper"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// memoryKeeper keeps descriptors as long as the test runs.
type memoryKeeper struct {
	t     *testing.T
	mu    sync.Mutex
	files map[string][]*os.File
}

func newKeeper(t *testing.T) *memoryKeeper {
	k := &memoryKeeper{t: t, files: map[string][]*os.File{}}
	t.Cleanup(func() {
		for name := range k.files {
			if err := k.Drop(context.WithoutCancel(t.Context()), name); err != nil {
				t.Error(err)
			}
		}
	})
	return k
}

func (k *memoryKeeper) Keeps() bool { return true }

func (k *memoryKeeper) duplicate(f *os.File) *os.File {
	raw, err := f.SyscallConn()
	if err != nil {
		k.t.Error(err)
		return nil
	}
	fd := -1
	if cerr := raw.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); cerr != nil || err != nil {
		k.t.Error(cerr, err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func (k *memoryKeeper) Store(_ context.Context, name string, files ...*os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.files[name] != nil {
		return keeper.ErrStored
	}
	for _, f := range files {
		k.files[name] = append(k.files[name], k.duplicate(f))
	}
	return nil
}

func (k *memoryKeeper) Drop(_ context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.files[name] {
		if err := f.Close(); err != nil {
			return err
		}
	}
	delete(k.files, name)
	return nil
}

// held is what the next process would be handed.
func (k *memoryKeeper) held() []keeper.Held {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []keeper.Held
	for name, files := range k.files {
		h := keeper.Held{Name: name}
		for _, f := range files {
			h.Files = append(h.Files, k.duplicate(f))
		}
		all = append(all, h)
	}
	return all
}

// kept opens a table that has a keeper.
func (w *world) kept(root string, mode Mode, k *memoryKeeper) *Table {
	w.t.Helper()
	return w.openWith(Options{Root: root, Mode: mode, Fetch: fetch.Options{Fill: fetch.None},
		Keeper: k, Held: k.held()})
}

// close ends a table as a process does that is told to stop.
func (w *world) close(t *Table) {
	w.t.Helper()
	if err := t.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// reader is a child that reads a tree.
type reader struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func startReader(t *testing.T, dir string) *reader {
	t.Helper()
	r := &reader{cmd: exec.CommandContext(t.Context(), os.Args[0])}
	r.cmd.Env = append(os.Environ(), readEnv+"="+dir)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *reader) wait(t *testing.T) string {
	t.Helper()
	if err := r.cmd.Wait(); err != nil {
		t.Fatalf("the reader: %v\n%s", err, r.out.Bytes())
	}
	return r.out.String()
}

// ids returns the numbers of the mounts that are visible at the directories.
func ids(t *testing.T, dirs ...string) []int {
	t.Helper()
	var all []int
	for _, dir := range dirs {
		m, ok, err := mountinfo.Top(dir)
		if err != nil || !ok {
			t.Fatalf("%s: %v, %v", dir, ok, err)
		}
		all = append(all, m.ID)
	}
	return all
}

// Readers that wait while the table is closed go on when the next one has opened; the mounts are
// the same.
func TestHandOver(t *testing.T) {
	for _, mode := range []Mode{EROFS, FUSE} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(nil)
			root, k := testDir(t), newKeeper(t)
			first := w.kept(root, mode, k)
			dirs := w.mountAll(first)
			before := ids(t, dirs...)
			w.broken.Store(true)
			r := startReader(t, dirs[0])
			eventually(t, "a read waits", func() bool {
				return first.Status()[0].Waiting+first.Status()[1].Waiting > 0
			})
			w.close(first)

			second := w.kept(root, mode, k)
			early := startReader(t, dirs[1]) // before anybody has asked for the layer
			if again := w.mountAll(second); !slices.Equal(again, dirs) {
				t.Errorf("mounted at %v, before at %v", again, dirs)
			}
			if after := ids(t, dirs...); !slices.Equal(after, before) {
				t.Errorf("mounts %v, before %v", after, before)
			}
			w.broken.Store(false)
			if got := r.wait(t); !strings.Contains(got, sum(bigFile)) {
				t.Errorf("wrong content:\n%s", got)
			}
			if got := early.wait(t); !strings.Contains(got, sum(smallFile)) {
				t.Errorf("wrong content:\n%s", got)
			}
			for _, d := range w.layers {
				if err := second.Remove(t.Context(), d); err != nil {
					t.Error(err)
				}
			}
			if left := k.held(); len(left) > 0 {
				t.Errorf("the keeper still has %v", left)
			}
		})
	}
}

// A layer of which everything is here needs neither the registry nor a new mount.
func TestRestartKeepsLocalMounts(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	root := testDir(t)
	first := w.open(root, Auto) // no index: the layers are downloaded
	dirs := w.mountAll(first)
	before := ids(t, dirs...)
	w.close(first)
	w.broken.Store(true)
	second := w.open(root, Auto)
	w.mountAll(second)
	if after := ids(t, dirs...); !slices.Equal(after, before) {
		t.Errorf("mounts %v, before %v", after, before)
	}
	if got := readTree(t, dirs[0]); !strings.Contains(got, sum(bigFile)) {
		t.Errorf("wrong content:\n%s", got)
	}
}

// What lies at a mount point and is not the layer does not stay there.
func TestWrongMountIsReplaced(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	root := testDir(t)
	first := w.open(root, Auto)
	dirs := w.mountAll(first)
	want := readTree(t, dirs[0])
	w.close(first)
	for _, x := range []struct {
		name string
		do   func() error
	}{
		{"unmounted", func() error { return unmount(dirs[0]) }},
		{"another layer", func() error {
			return unix.Mount(dirs[1], dirs[0], "", unix.MS_BIND, "")
		}},
		{"nobody serves it", func() error {
			m, err := fuse.MountDevice(t.Context(), dirs[0], zeros(4096), fuse.Options{})
			if err != nil {
				return err
			}
			return m.Close()
		}},
	} {
		if err := x.do(); err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		table := w.open(root, Auto)
		w.mountAll(table)
		if gone := table.Displaced(dirs); len(gone) > 0 {
			t.Errorf("%s: %v are not where they should be", x.name, gone)
		}
		if err := x.do(); err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		if gone := table.Displaced(dirs); !slices.Equal(gone, dirs[:1]) {
			t.Errorf("%s: missing are %v, want %s", x.name, gone, dirs[0])
		}
		w.mountAll(table)
		if got := readTree(t, dirs[0]); got != want {
			t.Errorf("%s: the layer is\n%s\nwant\n%s", x.name, got, want)
		}
		w.close(table)
	}
}

type zeros int64

func (z zeros) Size() int64 { return int64(z) }

func (zeros) ReadAt(_ context.Context, p []byte, _ int64) error { clear(p); return nil }

// A layer in use whose folder is damaged keeps nobody else from being served; its readers wait
// until it is back.
func TestHandOverOfDamagedLayer(t *testing.T) {
	// In erofs mode the index is the kernel's to read, too.
	for mode, name := range map[Mode]string{EROFS: "layer.json", FUSE: "index"} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(nil)
			root, k := testDir(t), newKeeper(t)
			first := w.kept(root, mode, k)
			dirs := w.mountAll(first)
			stuck, read := openFile(t, filepath.Join(dirs[0], "etc/big"))
			w.close(first)
			if err := os.Truncate(filepath.Join(root, "layers/sha256", w.layers[0].Encoded(), name),
				100); err != nil {
				t.Fatal(err)
			}
			w.broken.Store(true)
			read()
			second := w.kept(root, mode, k)
			if _, err := second.Mount(t.Context(), w.layer(0), nil); err == nil {
				t.Error("mounted a damaged layer without a registry")
			}
			w.broken.Store(false)
			w.mountAll(second)
			if got := readTree(t, dirs[0]); !strings.Contains(got, sum(bigFile)) {
				t.Errorf("wrong content:\n%s", got)
			}
			if got := readTree(t, dirs[1]); !strings.Contains(got, sum(smallFile)) {
				t.Errorf("wrong content:\n%s", got)
			}
			if got := stuck.wait(t); got != sum(bigFile) {
				t.Errorf("who had the file open reads %s, want %s", got, sum(bigFile))
			}
		})
	}
}

// The readers of a layer that does not come back get errors when the read deadline is over, and the
// layer when it is back after all.
func TestLostLayer(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	root, k := testDir(t), newKeeper(t)
	first := w.kept(root, FUSE, k)
	dirs := w.mountAll(first)
	early, readEarly := openFile(t, filepath.Join(dirs[0], "etc/big"))
	late, readLate := openFile(t, filepath.Join(dirs[0], "etc/big"))
	w.close(first)
	if err := os.Truncate(filepath.Join(root, "layers/sha256", w.layers[0].Encoded(), "index"),
		100); err != nil {
		t.Fatal(err)
	}
	second := w.openWith(Options{
		Root: root, Mode: FUSE, Fetch: fetch.Options{Fill: fetch.None}, Keeper: k, Held: k.held(),
		ReadDeadline: 300 * time.Millisecond,
	})
	readEarly()
	if err := early.cmd.Wait(); !strings.Contains(early.out.String(), "Input/output error") {
		t.Errorf("without the layer: %v, %s", err, early.out.Bytes())
	}
	w.mountAll(second)
	readLate()
	if got := late.wait(t); got != sum(bigFile) {
		t.Errorf("with the layer: %s, want %s", got, sum(bigFile))
	}
}

// openFile lets a shell open a file, and digest it when told to.
func openFile(t *testing.T, path string) (r *reader, read func()) {
	t.Helper()
	r = &reader{cmd: exec.CommandContext(t.Context(), "sh", "-c",
		`exec 3< "$0"; echo; read go; sha256sum <&3 | cut -d' ' -f1 | tr -d '\n' >&2`, path)}
	r.cmd.Stderr = &r.out
	opened, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := r.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := opened.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return r, func() {
		if _, err := io.WriteString(in, "\n"); err != nil {
			t.Error(err)
		}
	}
}

// What is kept of layers that nobody knows any more goes, and so do their mounts.
func TestLeftoverMounts(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	root, k := testDir(t), newKeeper(t)
	first := w.kept(root, EROFS, k)
	dirs := w.mountAll(first)
	w.close(first)
	if err := os.RemoveAll(filepath.Join(root, "layers/sha256",
		w.layers[1].Encoded())); err != nil {
		t.Fatal(err)
	}
	if err := k.Store(t.Context(), "rubbish", tempFile(t)); err != nil {
		t.Fatal(err)
	}
	second := w.kept(root, EROFS, k)
	if _, err := second.Mount(t.Context(), w.layer(0), nil); err != nil {
		t.Fatal(err)
	}
	if err := second.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m, ok, err := mountinfo.Top(dirs[1]); ok || err != nil {
		t.Errorf("left at %s: %v, %v", dirs[1], m, err)
	}
	if got := readTree(t, dirs[0]); !strings.Contains(got, sum(bigFile)) {
		t.Errorf("wrong content:\n%s", got)
	}
	if left := k.held(); len(left) != 1 {
		t.Errorf("the keeper has %v, want one mount", left)
	}
}

func tempFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := io.WriteString(f, "{}"); err != nil {
		t.Fatal(err)
	}
	return f
}
