package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// smallLayer is a layer of one file, "file", in a directory whose name holds what
// separates options.
func smallLayer(t *testing.T, content []byte) *layertest.Layer {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a,b:c d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b := layertest.NewBuilder()
	b.File("file", 0o644, content)
	l, err := b.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestMount(t *testing.T) {
	content := layertest.Random(300_001, 7)
	l := smallLayer(t, content)
	for _, tt := range []struct {
		name string
		o    erofs.Options
		want erofs.Backing
	}{
		{"auto", erofs.Options{}, erofs.File},
		{"file", erofs.Options{Backing: erofs.File}, erofs.File},
		{"buffered", erofs.Options{Buffered: true}, erofs.File},
		{"standalone", erofs.Options{Standalone: true}, erofs.File},
		{"loop", erofs.Options{Backing: erofs.Loop}, erofs.Loop},
		{"standalone loop", erofs.Options{Backing: erofs.Loop, Standalone: true}, erofs.Loop},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "x,y:z")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			before := attached(t, l)
			got, err := erofs.Mount(l.Index, l.Device, dir, tt.o)
			if err != nil || got != tt.want {
				t.Fatalf("backing %q, %v; want %q", got, err, tt.want)
			}
			m, ok, err := mountinfo.Top(dir)
			if err != nil || !ok || m.Type != erofs.Type || !strings.HasPrefix(m.Options, "ro,") ||
				got == erofs.File && m.Source != l.Index {
				t.Errorf("mount table: %+v, %v, %v", m, ok, err)
			}
			if got := erofs.Standalone(m); got != tt.o.Standalone {
				t.Errorf("standalone: %v, in %s", got, m.Options)
			}
			if !erofs.Shows(m, l.Index) || erofs.Shows(m, l.Index+"x") {
				t.Errorf("it is not known what %+v shows", m)
			}
			if direct := strings.Contains(m.Super,
				"directio"); direct != (got == erofs.File && !tt.o.Buffered) {
				t.Errorf("directio: %v, in %s", direct, m.Super)
			}
			if b := inChild(t, "read", filepath.Join(dir, "file")); !bytes.Equal(b, content) {
				t.Error("wrong bytes")
			}
			if _, err := os.Create(filepath.Join(dir, "new")); !errors.Is(err, unix.EROFS) {
				t.Errorf("created a file: %v", err)
			}
			if err := erofs.Unmount(dir); err != nil {
				t.Error(err)
			}
			if err := erofs.Unmount(dir); err != nil {
				t.Errorf("unmount of nothing: %v", err)
			}
			waitFor(t, "the loop devices to go", func() bool { return attached(t, l) == before })
		})
	}
}

// attached counts the loop devices that hold a layer's files.
func attached(t *testing.T, l *layertest.Layer) int {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if name := strings.TrimSpace(string(b)); err == nil &&
			(name == l.Index || name == l.Device) {
			n++
		}
	}
	return n
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// A mount over a mount: Unmount takes both, and a user of the lower one keeps it.
func TestUnmountStackedAndBusy(t *testing.T) {
	old, upper := []byte("the old one"), []byte("the new one")
	dir := t.TempDir()
	a, b := smallLayer(t, old), smallLayer(t, upper)
	if _, err := erofs.Mount(a.Index, a.Device, dir, erofs.Options{}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := erofs.Mount(b.Index, b.Device, dir, erofs.Options{}); err != nil {
		t.Fatal(err)
	}
	if got := inChild(t, "read", filepath.Join(dir, "file")); !bytes.Equal(got, upper) {
		t.Errorf("got %q from the upper mount", got)
	}
	if mounts, err := mountinfo.At(dir); err != nil || len(mounts) != 2 {
		t.Errorf("%v, %v; want two mounts", mounts, err)
	}
	if err := erofs.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if mounts, err := mountinfo.At(dir); err != nil || len(mounts) != 0 {
		t.Errorf("left: %v, %v", mounts, err)
	}
	got := make([]byte, len(old))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, old) {
		t.Errorf("who had it open reads %q, %v", got, err)
	}
}

func TestUnmountLeavesOthers(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmp", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	l := smallLayer(t, []byte("x"))
	if _, err := erofs.Mount(l.Index, l.Device, dir, erofs.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := erofs.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if m, ok, err := mountinfo.Top(dir); err != nil || !ok || m.Type != "tmpfs" {
		t.Errorf("%+v, %v, %v; want the tmpfs", m, ok, err)
	}
}

func TestMountFailureLeavesNothing(t *testing.T) {
	l := smallLayer(t, []byte("x"))
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("no erofs"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	for _, tt := range []struct {
		name, index, device, dir string
		want                     error
	}{
		{"no index", missing, l.Device, t.TempDir(), unix.ENOENT},
		{"no device", l.Index, missing, t.TempDir(), unix.ENOENT},
		{"no directory", l.Index, l.Device, missing, unix.ENOENT},
		{"no image", garbage, l.Device, t.TempDir(), unix.EINVAL},
	} {
		for _, backing := range []erofs.Backing{erofs.Auto, erofs.File, erofs.Loop} {
			t.Run(tt.name+"/"+string(backing), func(t *testing.T) {
				before := attached(t, l)
				_, err := erofs.Mount(tt.index, tt.device, tt.dir, erofs.Options{Backing: backing})
				if !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if tt.dir != missing {
					if mounts, err := mountinfo.At(tt.dir); err != nil || len(mounts) > 0 {
						t.Errorf("left: %v, %v", mounts, err)
					}
				}
				waitFor(t, "the loop devices to go",
					func() bool { return attached(t, l) == before })
			})
		}
	}
	if _, err := erofs.Mount(l.Index, l.Device, t.TempDir(),
		erofs.Options{Backing: "tape"}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("unknown backing: %v", err)
	}
}

func TestReadAhead(t *testing.T) {
	const bdis = "/sys/class/bdi"
	list := func() map[string]string {
		files, err := filepath.Glob(bdis + "/erofs-*/read_ahead_kb")
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]string)
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil {
				values[f] = strings.TrimSpace(string(b))
			}
		}
		return values
	}
	before := list()
	l, dir := smallLayer(t, []byte("x")), t.TempDir()
	if _, err := erofs.Mount(l.Index, l.Device, dir,
		erofs.Options{Backing: erofs.File, ReadAhead: 3 << 20}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = erofs.Unmount(dir) }()
	found := false
	for f, kib := range list() {
		if _, old := before[f]; !old && kib == "3072" {
			found = true
		}
	}
	if !found {
		t.Errorf("no new queue reads 3072 KiB ahead: %v", list())
	}
}

// A Mounter's child mounts what this process serves, is there for the next mount, and goes.
func TestMounter(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	content := layertest.Random(300_001, 7)
	l := smallLayer(t, content)
	var m erofs.Mounter
	m.Warm()
	served := t.TempDir()
	dev, err := os.Open(l.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	f, err := fuse.MountDevice(t.Context(), served,
		&fileDevice{fd: int(dev.Fd()), size: int64(len(l.Data))}, fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	const mounts = 5
	for i := range mounts {
		dir := t.TempDir()
		if _, err := m.Mount(l.Index, f.DevicePath(), dir, erofs.Options{}); err != nil {
			t.Fatal(err)
		}
		if b := inChild(t, "read", filepath.Join(dir, "file")); i == 0 && !bytes.Equal(b, content) {
			t.Error("wrong bytes")
		}
		if err := erofs.Unmount(dir); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%v a mount, with a read of it", time.Since(start)/mounts)
	if _, err := m.Mount(l.Index, filepath.Join(served, "other"), t.TempDir(),
		erofs.Options{}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a device that is not there: %v, want ENOENT", err)
	}
	m.Close()
	if _, err := m.Mount(l.Index, f.DevicePath(), t.TempDir(),
		erofs.Options{Backing: "tape"}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("after Close, which ends the child only: %v, want EINVAL", err)
	}
	m.Close()
	if err := f.Unmount(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, ignore)
}

// deafDevice answers no read until open is closed.
type deafDevice struct {
	fileDevice
	open chan struct{}
}

func (d *deafDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	select {
	case <-d.open:
		return d.fileDevice.ReadAt(ctx, p, off)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestMountHangs: a mount that hangs in the kernel has failed after a while, and hinders neither
// the next nor the end.
func TestMountHangs(t *testing.T) {
	l := smallLayer(t, layertest.Random(300_001, 7))
	m := erofs.Mounter{Limit: 500 * time.Millisecond}
	defer m.Close()
	index, err := os.Open(l.Index)
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	st, err := index.Stat()
	if err != nil {
		t.Fatal(err)
	}
	deaf := &deafDevice{fileDevice{fd: int(index.Fd()), size: st.Size()}, make(chan struct{})}
	f, err := fuse.MountDevice(t.Context(), t.TempDir(), deaf, fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	start := time.Now()
	_, err = m.Mount(f.DevicePath(), l.Device, dir, erofs.Options{})
	took := time.Since(start)
	if err == nil || !strings.Contains(err.Error(), "does not finish") || took > 10*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	if _, err := m.Mount(l.Index, l.Device, dir, erofs.Options{}); err != nil {
		t.Errorf("the next mount: %v", err)
	}
	close(deaf.open)
	if err := errors.Join(erofs.Unmount(dir), f.Unmount()); err != nil {
		t.Error(err)
	}
}
