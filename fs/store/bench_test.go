package store

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
	"github.com/mica-snapshotter/mica/index"
)

// served is a layer as fs/fuse reads it.
type served struct {
	*Layer
	read func(p []byte, off int64) (int, error)
}

func (d served) ReadAt(_ context.Context, p []byte, off int64) error {
	n, err := d.read(p, off)
	if n < len(p) {
		return fmt.Errorf("%d bytes of %d: %w", n, len(p), err)
	}
	return nil
}

// How a served layer is read.
var readers = []struct {
	name string
	read func(l *Layer) func(p []byte, off int64) (int, error)
	// dropped makes all that is filled leave the page cache at the flush.
	dropped bool
}{
	{name: "buffered", read: func(l *Layer) func(p []byte, off int64) (int, error) { return l.readBuffered }},
	{name: "store", read: func(l *Layer) func(p []byte, off int64) (int, error) { return l.readAt }},
	{name: "dropped-at-flush", read: func(l *Layer) func(p []byte, off int64) (int, error) { return l.readAt }, dropped: true},
}

// benchLayer is a layer in a store, filled span by span while Run flushes.
type benchLayer struct {
	*Layer
	content *layertest.Layer
	spans   int
}

const benchSpan = 4 << 20 // layertest's

func newBenchLayer(b *testing.B, add func(*layertest.Builder)) *benchLayer {
	b.Helper()
	dir := b.TempDir()
	lb := layertest.NewBuilder()
	add(lb)
	content, err := lb.Write(dir)
	if err != nil {
		b.Fatal(err)
	}
	st, err := Open(filepath.Join(dir, "store"))
	if err != nil {
		b.Fatal(err)
	}
	in, err := st.Create(content.Draft.Layer)
	if err != nil {
		b.Fatal(err)
	}
	ix, err := os.ReadFile(content.Index)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := in.Index().Write(ix); err != nil {
		b.Fatal(err)
	}
	size := content.Draft.DeviceSize
	spans := len(content.Draft.Spans)
	l, err := in.Commit(Record{Layer: content.Draft.Layer, DiffID: content.Draft.DiffID, LayerSize: size, DeviceSize: size, Spans: spans})
	if err != nil {
		b.Fatal(err)
	}
	l.Know(func() (index.Spans, error) { return content.Draft.Spans, nil }, nil, nil)
	ctx, cancel := context.WithCancel(b.Context())
	var run sync.WaitGroup
	run.Go(func() { _ = st.Run(ctx) })
	b.Cleanup(func() {
		cancel()
		run.Wait()
		if err := l.Close(); err != nil {
			b.Error(err)
		}
		if err := st.Close(); err != nil {
			b.Error(err)
		}
	})
	return &benchLayer{l, content, spans}
}

// fill writes all spans, as a fill does.
func (l *benchLayer) fill(b *testing.B) {
	b.Helper()
	f, err := os.Open(l.content.Device)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	l.present.restore(nil)
	l.mu.Lock()
	l.bytes = 0
	l.mu.Unlock()
	buf := make([]byte, benchSpan)
	for i := range l.spans {
		off := int64(i) * benchSpan
		n, err := f.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			b.Fatal(err)
		}
		if err := l.WriteSpan(i, buf[:n]); err != nil {
			b.Fatal(err)
		}
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
	if err := l.store.Flush(); err != nil {
		b.Fatal(err)
	}
}

func (l *benchLayer) forget(b *testing.B) {
	b.Helper()
	if err := l.store.drop(0); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		b.Fatal(err)
	}
}

// mount returns the mount point, and FUSE's device under it.
func (l *benchLayer) mount(b *testing.B, read func(p []byte, off int64) (int, error)) (dir, device string) {
	b.Helper()
	m, err := fuse.MountDevice(b.Context(), b.TempDir(), served{l.Layer, read}, fuse.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Unmount() })
	dir = b.TempDir()
	if _, err := erofs.Mount(l.content.Index, m.DevicePath(), dir, erofs.Options{}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = erofs.Unmount(dir) })
	return dir, m.DevicePath()
}

// drain reads all files in another process.
func drain(b *testing.B, dir string) {
	b.Helper()
	if out, err := exec.CommandContext(b.Context(), "sh", "-c", `find "$1" -type f -print0 | xargs -0 cat >/dev/null`, "sh", dir).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
}

// residentBytes returns how much of the files at and below paths the page cache holds.
func residentBytes(tb testing.TB, paths ...string) int64 {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), os.Args[0], paths...)
	cmd.Env = append(os.Environ(), residentEnv+"=1")
	out, err := cmd.Output()
	if err != nil {
		tb.Fatal(err)
	}
	n, err := strconv.ParseInt(string(out), 10, 64)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// BenchmarkErofs reads the files of an EROFS over FUSE over the store: one of 1 GiB, or
// 5,000 of 4 KiB among 256 MiB of others. filled: right after the layer has come in. cache/B is the
// bytes in the page cache of the files, FUSE's device and the store's, for each byte read;
// device/B is the part of the last.
func BenchmarkErofs(b *testing.B) {
	const small = 5_000
	for _, c := range []struct {
		name string
		size int64
		dir  string
		add  func(*layertest.Builder)
	}{
		{"1GiB", 1 << 30, "", func(lb *layertest.Builder) { lb.File("big", 0o644, layertest.Random(1<<30, 1)) }},
		{"small", small * 4096, "small", func(lb *layertest.Builder) {
			for i := range small {
				lb.File(fmt.Sprintf("small/%02d/%04d", i%100, i), 0o644, layertest.Random(4096, uint64(i)))
				if i%100 == 0 {
					lb.File(fmt.Sprintf("large/%04d", i), 0o644, layertest.Random(5<<20, uint64(i)))
				}
			}
		}},
	} {
		l := newBenchLayer(b, c.add)
		l.fill(b)
		for _, state := range []string{"cold", "filled"} {
			for _, r := range readers {
				if state == "cold" && r.dropped {
					continue
				}
				b.Run(c.name+"/"+state+"/"+r.name, func(b *testing.B) {
					var cached, own int64
					b.SetBytes(c.size)
					for range b.N {
						b.StopTimer()
						dir, device := l.mount(b, r.read(l.Layer))
						l.forget(b)
						if state == "filled" {
							l.fill(b)
							if r.dropped {
								if err := l.store.drop(0); err != nil {
									b.Fatal(err)
								}
							}
						}
						b.StartTimer()
						drain(b, filepath.Join(dir, c.dir))
						b.StopTimer()
						cached += residentBytes(b, filepath.Join(dir, c.dir), device, l.DevicePath())
						own += residentBytes(b, l.DevicePath())
						b.StartTimer()
					}
					b.ReportMetric(float64(cached)/float64(b.N)/float64(c.size), "cache/B")
					b.ReportMetric(float64(own)/float64(b.N)/float64(c.size), "device/B")
				})
			}
		}
	}
}

// BenchmarkVerify computes the digest of a device of 1 GiB, from disk or right after the
// fill.
func BenchmarkVerify(b *testing.B) {
	const size = 1 << 30
	l := newBenchLayer(b, func(lb *layertest.Builder) { lb.File("big", 0o644, layertest.Random(size, 1)) })
	for _, state := range []string{"cold", "filled"} {
		b.Run(state, func(b *testing.B) {
			b.SetBytes(size)
			var own int64
			for range b.N {
				b.StopTimer()
				l.forget(b)
				if state == "filled" || l.bytes == 0 {
					l.fill(b)
				}
				if state == "cold" {
					l.forget(b)
				}
				b.StartTimer()
				if err := l.VerifyWhole(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				own += residentBytes(b, l.DevicePath())
				b.StartTimer()
			}
			b.ReportMetric(float64(own)/float64(b.N)/size, "device/B")
		})
	}
}
