package node_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

func disk(t *testing.T) *node.Disk {
	t.Helper()
	dir := t.TempDir()
	d, err := node.NewDisk(fixture.Context(t), filepath.Join(dir, "disk"), filepath.Join(dir, "mnt"), 128<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func content(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// write writes a file, and syncs it where told to.
func write(t *testing.T, path string, b []byte, sync bool) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.Write(b)
	if sync {
		err = errors.Join(err, f.Sync())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A disk whose power is cut has what was synced, and has lost what was not.
func TestDiskCut(t *testing.T) {
	d := disk(t)
	want := content(100_000)
	synced, lost := filepath.Join(d.Dir, "synced"), filepath.Join(d.Dir, "lost")
	write(t, synced, want, true)
	write(t, lost, want, false)
	if err := d.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Dir, "late"), nil, 0o600); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write without power: %v", err)
	}
	if err := errors.Join(unix.Unmount(d.Dir, 0), d.Mount()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(synced); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was synced: %d bytes, %v", len(got), err)
	}
	if got, err := os.ReadFile(lost); err == nil && len(got) > 0 {
		t.Errorf("%d bytes are there that were not synced", len(got))
	}
}

// Behind its limit a disk can be neither read nor written; without it, all is there.
func TestDiskLimit(t *testing.T) {
	d := disk(t)
	want := content(1 << 20)
	path := filepath.Join(d.Dir, "file")
	write(t, path, want, true)
	low, high, err := d.Where(fixture.Context(t), path)
	if err != nil || high-low < int64(len(want)) {
		t.Fatalf("it lies from %d to %d: %v", low, high, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := func() error {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		_, err := f.ReadAt(got, 0)
		if err == nil && !bytes.Equal(got, want) {
			t.Error("other bytes than were written")
		}
		return err
	}
	if err := d.Limit(low); err != nil {
		t.Fatal(err)
	}
	if err := read(); !errors.Is(err, syscall.EIO) {
		t.Errorf("read behind the limit: %v", err)
	}
	if err := d.Limit(0); err != nil {
		t.Fatal(err)
	}
	if err := read(); err != nil {
		t.Errorf("read without a limit: %v", err)
	}
}

// A disk that fails while a span is on its way there makes zeros of it, and tells nobody for a
// while: the store gives the span up when somebody reads it.
func TestDiskLosesSpan(t *testing.T) {
	d := disk(t)
	s, err := store.Open(filepath.Join(d.Dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := content(1 << 20)
	rec := store.Record{
		Layer: digest.FromString("layer"), DiffID: digest.FromBytes(want), LayerSize: 1, DeviceSize: int64(len(want)), Spans: 1,
	}
	in, err := s.Create(rec.Layer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Index().Write([]byte("index")); err != nil {
		t.Fatal(err)
	}
	l, err := in.Commit(rec)
	if err != nil {
		t.Fatal(err)
	}
	l.Know(func() (index.Spans, error) {
		return index.Spans{{Size: int64(len(want)), Digest: sha256.Sum256(want)}}, nil
	}, nil, nil)
	if err := l.WriteSpan(0, want); err != nil {
		t.Fatal(err)
	}
	if err := d.Limit(1 << 20); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(l.DevicePath())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 100_000)
	fixture.Eventually(t, 20*time.Second, func() string {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(got, 4096); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(got, want[4096:][:len(got)]) {
			return "nothing is lost"
		}
		return ""
	})
	if err := l.Read(got, 4096); !errors.Is(err, store.ErrMissing) || l.Present(0) {
		t.Errorf("what was lost is read: %v", err)
	}
	if _, err := os.Stat(filepath.Join(l.Dir(), "present")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was lost is recorded as present: %v", err)
	}
	_ = l.Close() // of a disk that fails
}

// A full disk takes no byte until it is given back.
func TestDiskFill(t *testing.T) {
	d := disk(t)
	path := filepath.Join(d.Dir, "file")
	free, err := d.Fill()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content(100_000), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write to a full disk: %v", err)
	}
	if err := free(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content(100_000), 0o600); err != nil {
		t.Error(err)
	}
}
