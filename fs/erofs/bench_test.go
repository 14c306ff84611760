package erofs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
	image "github.com/mica-snapshotter/mica/index/erofs"
)

// fileDevice is a store's file, read in one of several ways.
type fileDevice struct {
	fd    int
	size  int64
	flags int  // of preadv2(2)
	drop  bool // fadvise(DONTNEED) behind each read
	// direct is the file opened with O_DIRECT, for reads of directFrom bytes and
	// more; 0: none.
	direct int
}

const directFrom = 128 << 10

const rwfDontcache = 0x80 // RWF_DONTCACHE, Linux 6.14

func (d *fileDevice) Size() int64 { return d.size }

func (d *fileDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	fd := d.fd
	if d.direct != 0 && len(p) >= directFrom {
		fd = d.direct
	}
	n, err := unix.Preadv2(fd, [][]byte{p}, off, d.flags)
	if err == nil && n != len(p) {
		err = fmt.Errorf("%d bytes of %d", n, len(p))
	}
	if d.drop {
		if err := unix.Fadvise(d.fd, off, int64(len(p)), unix.FADV_DONTNEED); err != nil {
			return err
		}
	}
	return err
}

// benchLayer is one file of a given size, 5,000 of 4 KiB in 100 directories, and
// the same natively.
func benchLayer(b *testing.B, big int64) (l *layertest.Layer, native string) {
	b.Helper()
	dir := b.TempDir()
	native = filepath.Join(dir, "native")
	if err := os.MkdirAll(native, 0o755); err != nil {
		b.Fatal(err)
	}
	lb := layertest.NewBuilder()
	write := func(name string, content []byte) {
		lb.File(name, 0o644, content)
		path := filepath.Join(native, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if big > 0 {
		write("big", layertest.Random(int(big), 1))
	} else {
		for i := range 5_000 {
			write(fmt.Sprintf("small/%02d/%04d", i%100, i), layertest.Random(4096, uint64(i)))
		}
	}
	l, err := lb.Write(dir)
	if err != nil {
		b.Fatal(err)
	}
	l.Data, l.Draft.Root = nil, &image.Node{}
	unix.Sync()
	return l, native
}

// benchTarget is a way to get at a layer's files.
type benchTarget struct {
	name  string
	mount func(b *testing.B, l *layertest.Layer, native string) string
}

func benchTargets() []benchTarget {
	direct := func(flags int, open int, drop bool) func(*testing.B, *layertest.Layer) fuse.Device {
		return func(b *testing.B, l *layertest.Layer) fuse.Device {
			b.Helper()
			fd, err := unix.Open(l.Device, unix.O_RDONLY|unix.O_CLOEXEC|open, 0)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = unix.Close(fd) })
			return &fileDevice{fd: fd, size: l.Draft.DeviceSize, flags: flags, drop: drop}
		}
	}
	hybrid := func(b *testing.B, l *layertest.Layer) fuse.Device {
		b.Helper()
		d, large := direct(0, 0, false)(b, l).(*fileDevice), direct(0, unix.O_DIRECT, false)(b,
			l).(*fileDevice)
		d.direct = large.fd
		return d
	}
	plain, dontcache, dropped, odirect := direct(0, 0, false), direct(rwfDontcache, 0,
		false), direct(0, 0, true), direct(0, unix.O_DIRECT, false)
	over := func(dev func(*testing.B, *layertest.Layer) fuse.Device,
		o erofs.Options) func(*testing.B, *layertest.Layer, string) string {
		return func(b *testing.B, l *layertest.Layer, _ string) string {
			b.Helper()
			m, err := fuse.MountDevice(b.Context(), b.TempDir(), dev(b, l), fuse.Options{})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = m.Unmount() })
			return mounted(b, l.Index, m.DevicePath(), o)
		}
	}
	tree := func(dev func(*testing.B, *layertest.Layer) fuse.Device) func(*testing.B,
		*layertest.Layer, string) string {
		return func(b *testing.B, l *layertest.Layer, _ string) string {
			b.Helper()
			m, err := fuse.MountTree(b.Context(), b.TempDir(), l.Open(b), dev(b, l), fuse.Options{})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = m.Unmount() })
			return m.Dir()
		}
	}
	local := func(o erofs.Options) func(*testing.B, *layertest.Layer, string) string {
		return func(b *testing.B, l *layertest.Layer, _ string) string {
			b.Helper()
			return mounted(b, l.Index, l.Device, o)
		}
	}
	return []benchTarget{
		{"native", func(_ *testing.B, _ *layertest.Layer, native string) string { return native }},
		{"local/direct", local(erofs.Options{})},
		{"local/buffered", local(erofs.Options{Buffered: true})},
		{"local/loop", local(erofs.Options{Backing: erofs.Loop})},
		{"erofs/direct/plain", over(plain, erofs.Options{})},
		{"erofs/direct/dontcache", over(dontcache, erofs.Options{})},
		{"erofs/direct/fadvise", over(dropped, erofs.Options{})},
		{"erofs/direct/odirect", over(odirect, erofs.Options{})},
		{"erofs/direct/hybrid", over(hybrid, erofs.Options{})},
		{"erofs/buffered/plain", over(plain, erofs.Options{Buffered: true})},
		{"erofs/buffered/dontcache", over(dontcache, erofs.Options{Buffered: true})},
		{"erofs/loop/plain", over(plain, erofs.Options{Backing: erofs.Loop})},
		{"fuse/plain", tree(plain)},
		{"fuse/hybrid", tree(hybrid)},
		{"fuse/dontcache", tree(dontcache)},
	}
}

func mounted(b *testing.B, image, device string, o erofs.Options) string {
	b.Helper()
	dir := b.TempDir()
	if _, err := erofs.Mount(image, device, dir, o); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = erofs.Unmount(dir) })
	return dir
}

func dropCaches(b *testing.B) {
	b.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		b.Fatal(err)
	}
}

// cached returns the page cache's size in bytes.
func cached(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "Cached:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no Cached: in /proc/meminfo")
	return 0
}

// BenchmarkSequential reads one file from the first byte to the last, from a
// cold page cache; cache/B is by how many bytes the page cache grows for each byte read.
func BenchmarkSequential(b *testing.B) {
	const size = 1 << 30
	l, native := benchLayer(b, size)
	for _, t := range benchTargets() {
		b.Run(t.name, func(b *testing.B) {
			dir := t.mount(b, l, native)
			b.SetBytes(size)
			var grown int64
			for range b.N {
				b.StopTimer()
				dropCaches(b)
				before := cached(b)
				b.StartTimer()
				inChild(b, "drain", filepath.Join(dir, "big"))
				b.StopTimer()
				grown += cached(b) - before
				b.StartTimer()
			}
			b.ReportMetric(float64(grown)/float64(b.N)/size, "cache/B")
		})
	}
}

// BenchmarkSmallFiles finds, and reads, 5,000 files of 4 KiB.
func BenchmarkSmallFiles(b *testing.B) {
	l, native := benchLayer(b, 0)
	for _, verb := range []string{"find", "drain"} {
		for _, temperature := range []string{"cold", "warm"} {
			for _, t := range benchTargets() {
				b.Run(verb+"/"+temperature+"/"+t.name, func(b *testing.B) {
					dir := t.mount(b, l, native)
					inChild(b, verb, dir)
					for b.Loop() {
						if temperature == "cold" {
							b.StopTimer()
							dropCaches(b)
							b.StartTimer()
						}
						inChild(b, verb, dir)
					}
				})
			}
		}
	}
}
