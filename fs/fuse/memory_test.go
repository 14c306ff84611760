package fuse_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
)

// inUse returns how many bytes of heap and stacks are in use, garbage collected.
func inUse() int64 {
	runtime.GC()
	runtime.GC() // pools are emptied in two steps
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// An idle mount costs next to nothing, also after it was busy.
func TestIdleMountsAreSmall(t *testing.T) {
	const mounts = 12
	l := layertest.Nasty().Make(t)
	memory := fuse.NewMemory(0)
	before, goroutines := inUse(), runtime.NumGoroutine()
	var dirs []string
	for range mounts {
		m, err := fuse.MountTree(t.Context(), t.TempDir(), l.Open(t), &memDevice{data: l.Data},
			fuse.Options{Memory: memory})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Unmount(); err != nil {
				t.Error(err)
			}
			m.Wait()
		})
		dirs = append(dirs, m.Dir())
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for k := i; k < mounts; k += 4 {
				if _, err := tryChild(t, "walk", dirs[k]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	after := inUse()
	if per := (after - before) / mounts; per > 128<<10 {
		t.Errorf("%d KiB a mount", per>>10)
	}
	if n := runtime.NumGoroutine() - goroutines; n > mounts*4 {
		t.Errorf("%d goroutines for %d idle mounts", n, mounts)
	}
	t.Logf("%d KiB for %d mounts", (after-before)>>10, mounts)
}

// However many reads there are, those that hold a buffer are bounded by bytes.
func TestReadsAreBoundedByBytes(t *testing.T) {
	const limit = 4 << 20
	data := layertest.Random(64<<20, 9)
	var held, most atomic.Int64
	var mu sync.Mutex
	dev := &memDevice{data: data, before: func(_ context.Context, _ int64, n int) error {
		mu.Lock()
		most.Store(max(most.Load(), held.Add(int64(n))))
		mu.Unlock()
		time.Sleep(2 * time.Millisecond)
		held.Add(-int64(n))
		return nil
	}}
	m := mountDevice(t, dev, fuse.Options{Memory: fuse.NewMemory(limit)})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			got, err := tryChild(t, "read", m.DevicePath(), strconv.Itoa(i*4<<20),
				strconv.Itoa(4<<20), "direct")
			if err != nil {
				t.Error(err)
			} else if !bytes.Equal(got, data[i*4<<20:][:4<<20]) {
				t.Error("wrong bytes")
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > limit || n < limit/2 {
		t.Errorf("at most %d bytes were read at once; the limit is %d", n, limit)
	}
}

// One Memory, of a single buffer, serves many mounts.
func TestMemoryIsShared(t *testing.T) {
	memory := fuse.NewMemory(1 << 20)
	data := layertest.Random(3<<20, 10)
	ref := filepath.Join(t.TempDir(), "ref")
	if err := os.WriteFile(ref, data, 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		m, err := fuse.MountDevice(t.Context(), t.TempDir(), &memDevice{data: data},
			fuse.Options{Memory: memory})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Unmount(); err != nil {
				t.Error(err)
			}
			m.Wait()
		})
		wg.Go(func() {
			if _, err := tryChild(t, "random", m.DevicePath(), ref, strconv.Itoa(i), "100",
				"1000000"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
