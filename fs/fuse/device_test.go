package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// memDevice is a Device in memory, with a hook before each read.
type memDevice struct {
	data   []byte
	before func(ctx context.Context, off int64, n int) error
}

func (d *memDevice) Size() int64 { return int64(len(d.data)) }

func (d *memDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > d.Size() {
		return fmt.Errorf("read of %d bytes at %d of %d", len(p), off, d.Size())
	}
	if d.before != nil {
		if err := d.before(ctx, off, len(p)); err != nil {
			return err
		}
	}
	copy(p, d.data[off:])
	return nil
}

// mountDevice mounts a device for the test's duration and checks that nothing
// stays behind.
func mountDevice(t *testing.T, dev fuse.Device, o fuse.Options) *fuse.Mount {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	m, err := fuse.MountDevice(t.Context(), t.TempDir(), dev, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, m, ignore) })
	return m
}

func unmount(t *testing.T, m *fuse.Mount, ignore goleak.Option) {
	t.Helper()
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
	select {
	case <-m.Done():
	case <-time.After(10 * time.Second):
		t.Error("the mount does not end")
	}
	if mounts, err := mountinfo.At(m.Dir()); err != nil || len(mounts) > 0 {
		t.Errorf("left at the mount point: %v, %v", mounts, err)
	}
	goleak.VerifyNone(t, ignore)
}

func TestDeviceContent(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 4096, 4097, 1 << 20, 5<<20 + 777} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			data := layertest.Random(size, 1)
			m := mountDevice(t, &memDevice{data: data}, fuse.Options{})
			want := append(bytes.Clone(data), make([]byte, (512-size%512)%512)...)
			for _, flag := range []string{"", "direct"} {
				if got := inChild(t, "read", m.DevicePath(), "0", "-1", flag); !bytes.Equal(got,
					want) {
					t.Errorf("%q: got %d bytes, want %d, or they differ", flag, len(got), len(want))
				}
			}
			if got := inChild(t, "read", m.DevicePath(), strconv.Itoa(len(want)),
				"4096"); len(got) != 0 {
				t.Errorf("%d bytes beyond the end", len(got))
			}
			if got := inChild(t, "names", m.Dir(), "4096"); string(got) != ".\n..\ndevice\n" {
				t.Errorf("names: %q", got)
			}
			if n := m.Stats().Errors; n > 0 {
				t.Errorf("%d errors", n)
			}
		})
	}
}

func TestDeviceMissingName(t *testing.T) {
	m := mountDevice(t, &memDevice{data: make([]byte, 512)}, fuse.Options{})
	const tries = 20
	for range tries {
		if _, err := tryChild(t, "read", filepath.Join(m.Dir(), "other"), "0", "1"); !errors.Is(err,
			unix.ENOENT) {
			t.Fatalf("got %v, want ENOENT", err)
		}
	}
	// One, unless somebody made the kernel drop its caches meanwhile.
	if n := m.Stats().Requests["lookup"]; n == 0 || n > tries/2 {
		t.Errorf("%d lookups of a missing name in %d tries: it is missing for ever", n, tries)
	}
}

func TestDeviceConcurrentReads(t *testing.T) {
	data := layertest.Random(8<<20, 2)
	ref := filepath.Join(t.TempDir(), "ref")
	if err := os.WriteFile(ref, data, 0o600); err != nil {
		t.Fatal(err)
	}
	var fills atomic.Int64
	dev := &fillDevice{memDevice: memDevice{data: data},
		fill: func(context.Context, int64, int64) error {
			fills.Add(1)
			time.Sleep(time.Millisecond)
			return nil
		}}
	m := mountDevice(t, dev, fuse.Options{Memory: fuse.NewMemory(1 << 20)})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			if _, err := tryChild(t, "random", m.DevicePath(), ref, strconv.Itoa(i), "300",
				"300000"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if fills.Load() == 0 {
		t.Error("Fill was never called")
	}
}

type fillDevice struct {
	memDevice
	fill func(ctx context.Context, off, n int64) error
}

func (d *fillDevice) Fill(ctx context.Context, off, n int64) error {
	if off < 0 || n <= 0 || off+n > d.Size() {
		return fmt.Errorf("fill of %d bytes at %d of %d", n, off, d.Size())
	}
	return d.fill(ctx, off, n)
}

// Reads that wait in Fill hold no memory: those whose data are there pass by.
func TestWaitingReadsHoldNoMemory(t *testing.T) {
	const size = 64 << 20
	data := layertest.Random(4096, 3)
	data = append(data, make([]byte, size-len(data))...)
	dev := &fillDevice{memDevice: memDevice{data: data},
		fill: func(ctx context.Context, off, n int64) error {
			if off == 0 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
	m := mountDevice(t, dev, fuse.Options{Memory: fuse.NewMemory(1 << 20)})
	for i := range 20 {
		cmd := childCmd(t, "read", m.DevicePath(), strconv.Itoa((i+1)<<21), strconv.Itoa(1<<20),
			"direct")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // after Close, which ends its read
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	waitFor(t, "20 reads under way", func() bool { return m.Stats().Requests["read"] >= 20 })
	if got := inChild(t, "read", m.DevicePath(), "0", "4096", "direct"); !bytes.Equal(got,
		data[:4096]) {
		t.Error("wrong bytes")
	}
	if err := m.Close(); err != nil { // ASYNC_DIO: they cannot be interrupted
		t.Error(err)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func TestDeviceErrorClears(t *testing.T) {
	var broken atomic.Bool
	cause := errors.New("registry is away")
	data := layertest.Random(1<<20, 4)
	m := mountDevice(t, &memDevice{data: data, before: func(context.Context, int64, int) error {
		if broken.Load() {
			return cause
		}
		return nil
	}}, fuse.Options{})
	broken.Store(true)
	for range 2 {
		if _, err := tryChild(t, "read", m.DevicePath(), "0", "-1"); !errors.Is(err, unix.EIO) {
			t.Fatalf("got %v, want EIO", err)
		}
	}
	if m.Stats().Errors == 0 {
		t.Error("no error counted")
	}
	broken.Store(false)
	if got := inChild(t, "read", m.DevicePath(), "0", "-1"); !bytes.Equal(got, data) {
		t.Error("wrong bytes after the fault has gone")
	}
}

func TestPanicBecomesEIO(t *testing.T) {
	data := layertest.Random(1<<20, 5)
	var calls, panics atomic.Int64
	m := mountDevice(t, &memDevice{data: data, before: func(context.Context, int64, int) error {
		if calls.Add(1) <= 2 {
			panic("device fell over")
		}
		return nil
	}}, fuse.Options{Memory: fuse.NewMemory(1 << 20), Panicked: func(any) { panics.Add(1) }})
	if _, err := tryChild(t, "read", m.DevicePath(), "0", "4096", "direct"); !errors.Is(err,
		unix.EIO) {
		t.Fatalf("got %v, want EIO", err)
	}
	if panics.Load() == 0 {
		t.Error("nobody was told of the panic")
	}
	waitFor(t, "the fault to pass", func() bool {
		got, err := tryChild(t, "read", m.DevicePath(), "0", "-1")
		return err == nil && bytes.Equal(got, data)
	})
}

func TestKilledReaderEndsPromptly(t *testing.T) {
	m := mountDevice(t, &memDevice{data: make([]byte, 8<<20),
		before: func(ctx context.Context, _ int64, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}}, fuse.Options{})
	cmd := childCmd(t, "read", m.DevicePath(), "0", "-1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the read", func() bool { return m.Stats().Requests["read"] > 0 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it was killed
	}()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("a killed reader hangs")
		_ = m.Close()
		<-ended
	}
}

// Unmount of a mount in use leaves it to its users.
func TestUnmountBusy(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	release := make(chan struct{})
	data := layertest.Random(4096, 6)
	m, err := fuse.MountDevice(t.Context(), t.TempDir(),
		&memDevice{data: data, before: func(ctx context.Context, _ int64, _ int) error {
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}, fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := childCmd(t, "read", m.DevicePath(), "0", "-1")
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the read", func() bool { return m.Stats().Requests["read"] > 0 })
	if err := m.Unmount(); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := mountinfo.Top(m.Dir()); ok || err != nil {
		t.Errorf("still mounted: %v %v", ok, err)
	}
	close(release)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the reader that was under way: %v", err)
	}
	if !bytes.Equal(out.Bytes(), data) {
		t.Error("wrong bytes")
	}
	m.Wait()
	goleak.VerifyNone(t, ignore)
}

func TestCloseFailsReadersAndDetachCleans(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	dir := t.TempDir()
	m, err := fuse.MountDevice(t.Context(), dir, &memDevice{data: make([]byte, 4096)},
		fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	goleak.VerifyNone(t, ignore)
	if _, err := tryChild(t, "read", m.DevicePath(), "0", "1"); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("a dead mount answers %v, want ENOTCONN", err)
	}
	// A second one on top, alive.
	again, err := fuse.MountDevice(t.Context(), dir, &memDevice{data: make([]byte, 4096)},
		fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(); !errors.Is(err, fuse.ErrCovered) {
		t.Errorf("unmount from under another mount: %v, want ErrCovered", err)
	}
	for range 2 {
		if err := fuse.Detach(dir); err != nil {
			t.Fatal(err)
		}
	}
	if mounts, err := mountinfo.At(dir); err != nil || len(mounts) > 0 {
		t.Errorf("left: %v, %v", mounts, err)
	}
	again.Wait()
	if err := errors.Join(m.Unmount(), again.Unmount()); err != nil {
		t.Errorf("unmount of what is not there: %v", err)
	}
	goleak.VerifyNone(t, ignore)
}

func TestMountFailureLeavesNothing(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	if _, err := fuse.MountDevice(t.Context(), filepath.Join(t.TempDir(), "missing"), &memDevice{},
		fuse.Options{}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
	goleak.VerifyNone(t, ignore)
}
