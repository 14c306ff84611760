package fs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/store"
)

// keepEnv makes the test binary keep reading a file that it has open: see holder.
const keepEnv = "MICA_FS_TEST_KEEP"

// spanSize is that of world.index.
const spanSize = 64 << 10

// noise makes n bytes that gzip does not shrink.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// manyFiles is a layer of n files of size bytes each, and a listing's lines for them.
func manyFiles(t *testing.T, seed uint64, n, size int) (blob []byte, lines []string) {
	t.Helper()
	var all []entry
	for i := range n {
		e := entry{fmt.Sprintf("f%d-%03d", seed, i), 0o644, noise(seed*1000+uint64(i), size)}
		all = append(all, e)
		lines = append(lines, fmt.Sprintf("%s -rw-r--r-- %s", e.name, sum(e.data)))
	}
	return layerOf(t, all...), lines
}

func mustList(t *testing.T, dir string, lines []string) {
	t.Helper()
	got := readTree(t, dir)
	for _, want := range lines {
		if !strings.Contains(got, want) {
			t.Errorf("%s lacks %q", dir, want)
		}
	}
}

// usedBy is what the layers below root take, as du says.
func usedBy(t *testing.T, root string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e iofs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err == nil && !e.IsDir() {
			total += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return total
}

// TestQuota: readers of three times as much as the quota read what is right, and the disk never
// holds more than the quota and a span for each of them.
func TestQuota(t *testing.T) {
	const files, size, readers, quota = 96, 128 << 10, 4, 4 << 20
	blob, lines := manyFiles(t, 1, files, size)
	for _, mode := range []Mode{EROFS, FUSE} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, blob)
			w.index(nil)
			root := testDir(t)
			table := w.openWith(Options{Root: root, Mode: mode,
				Fetch: fetch.Options{Fill: fetch.All}, Cache: cache.Options{Size: quota}})
			dir := w.mountAll(table)[0]
			var most atomic.Int64
			ctx, stop := context.WithCancel(t.Context())
			var sampling sync.WaitGroup
			sampling.Go(func() {
				for ctx.Err() == nil {
					most.Store(max(most.Load(), usedBy(t, root+"/layers")))
					time.Sleep(5 * time.Millisecond)
				}
			})
			var reading sync.WaitGroup
			for range readers {
				reading.Go(func() { mustList(t, dir, lines) })
			}
			reading.Wait()
			stop()
			sampling.Wait()
			c := table.Cache().Status()
			if limit := int64(quota + readers*spanSize); most.Load() > limit {
				t.Errorf("%d bytes were on disk, %d allowed", most.Load(), limit)
			}
			if most.Load() < quota/2 {
				t.Errorf("only %d bytes were on disk: the cache is no use", most.Load())
			}
			if c.Evicted == 0 || c.Quota != quota || !c.Full {
				t.Errorf("status: %+v", c)
			}
			if s := table.Status()[0]; s.State != store.Lazy.String() {
				t.Errorf("a layer with holes is %s", s.State)
			}
		})
	}
}

// TestEvictionOrder: of layers that no container uses goes first what was read least recently.
func TestEvictionOrder(t *testing.T) {
	const files, size = 32, 128 << 10
	var blobs [][]byte
	var lines [][]string
	for seed := range uint64(3) {
		b, l := manyFiles(t, seed, files, size)
		blobs, lines = append(blobs, b), append(lines, l)
	}
	w := newWorld(t, blobs...)
	w.index(nil)
	inUse := map[digest.Digest]bool{}
	table := w.openWith(Options{Root: testDir(t), Mode: EROFS,
		Fetch: fetch.Options{Fill: fetch.None}, Cache: cache.Options{
			Size: 9 << 20, InUse: func(context.Context) (map[digest.Digest]bool, error) {
				return inUse, nil
			},
		}})
	inUse[w.layers[0]] = true
	dirs := w.mountAll(table)
	present := func(layer int) int64 {
		for _, s := range table.Status() {
			if s.Layer == w.layers[layer] {
				return s.Present
			}
		}
		return -1
	}
	mustList(t, dirs[0], lines[0]) // used by a container, read first
	time.Sleep(1100 * time.Millisecond)
	mustList(t, dirs[1], lines[1])
	time.Sleep(1100 * time.Millisecond)
	all := present(0)
	if all < files*size || present(1) < files*size {
		t.Fatalf("%d and %d bytes are there after reading %d", all, present(1), files*size)
	}
	mustList(t, dirs[2], lines[2])
	// Reads do not wait for what they brought to be stored.
	eventually(t, "what was read last is there", func() bool { return present(2) == all })
	if present(0) != all || present(1) > files*size/2 {
		t.Errorf("there are %d bytes of a used layer, %d of an unused one, %d of what was read "+
			"last", present(0), present(1), present(2))
	}
}

// holder is a child process that has the file open and reads it whenever it is asked to.
type holder struct {
	in  io.WriteCloser
	out *bufio.Reader
	end func() // of the child
}

func hold(t *testing.T, path string) *holder {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), keepEnv+"="+path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &holder{in, bufio.NewReader(out), sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})}
	t.Cleanup(h.end)
	h.read(t)
	return h
}

// read returns the digest of what the child reads now, from the disk.
func (h *holder) read(t *testing.T) string {
	t.Helper()
	if _, err := io.WriteString(h.in, "\n"); err != nil {
		t.Fatal(err)
	}
	line, err := h.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// keep is the child of hold.
func keep(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	for asked := bufio.NewScanner(os.Stdin); asked.Scan(); {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<40)); err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(hex.EncodeToString(h.Sum(nil)))
	}
	return nil
}

// TestCompleteLayerGoes: a layer that the kernel serves goes as a whole when no container is known
// to use it; who uses it all the same never notices, its mount point shows it at any moment, and
// its space is free in the end.
func TestCompleteLayerGoes(t *testing.T) {
	const files, size = 32, 128 << 10
	blob, lines := manyFiles(t, 5, files, size)
	w := newWorld(t, blob) // no index: it is brought whole
	root := testDir(t)
	inUse := func(context.Context) (map[digest.Digest]bool, error) { return nil, nil }
	table := w.openWith(Options{Root: root, Mode: Auto, Fetch: fetch.Options{Fill: fetch.None},
		Cache: cache.Options{InUse: inUse}})
	dir := w.mountAll(table)[0]
	if s := table.Status()[0]; s.Mode != Local {
		t.Fatalf("the layer is served in mode %s", s.Mode)
	}
	used := hold(t, filepath.Join(dir, "f5-007"))
	want := sum(noise(5007, size))
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for ctx.Err() == nil {
			// Through the path, while mounts change. Names only: the bytes come later.
			out, err := exec.CommandContext(t.Context(), "stat", "-c", "%s",
				filepath.Join(dir, "f5-009")).CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(size) {
				t.Errorf("the mount point shows %q, %v", out, err)
			}
		}
	})
	before := usedBy(t, root+"/layers")
	if err := table.Cache().GiveUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	watching.Wait()
	if after := usedBy(t, root+"/layers"); before-after < files*size {
		t.Errorf("%d bytes before, %d after", before, after)
	}
	if s := table.Status()[0]; s.Mode != EROFS || s.Present != 0 || s.State != store.Lazy.String() {
		t.Errorf("the layer is %+v", s)
	}
	if got := used.read(t); got != want {
		t.Errorf("who used the layer reads %s, want %s", got, want)
	}
	mustList(t, dir, lines) // comes again
	if got := used.read(t); got != want {
		t.Errorf("who used the layer reads %s, want %s", got, want)
	}
	eventually(t, "the layer is complete again", func() bool {
		return table.Status()[0].Mode == Local
	})
	mustList(t, dir, lines)
	if got := used.read(t); got != want {
		t.Errorf("who used the layer reads %s, want %s", got, want)
	}
}

// TestGiveUpInUse: what a container uses stays.
func TestGiveUpInUse(t *testing.T) {
	blob, _ := manyFiles(t, 6, 8, 64<<10)
	w := newWorld(t, blob)
	inUse := map[digest.Digest]bool{}
	table := w.openWith(Options{Root: testDir(t), Mode: Auto,
		Fetch: fetch.Options{Fill: fetch.None}, Cache: cache.Options{
			InUse: func(context.Context) (map[digest.Digest]bool, error) { return inUse, nil },
		}})
	inUse[w.layers[0]] = true
	w.mountAll(table)
	if err := table.Cache().GiveUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := table.Status()[0]; s.Mode != Local || s.Present != s.Total {
		t.Errorf("the layer is %+v", s)
	}
	all, err := table.Cache().Usage(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("usage: %+v, %v", all, err)
	}
	if u := all[0]; !u.InUse || u.Layer != w.layers[0] || u.Size != int64(len(blob)) ||
		u.Present != u.Unpacked || u.Disk < u.Unpacked || u.State != "verified" ||
		len(u.Refs) != 1 || u.Refs[0] != w.ref {
		t.Errorf("usage: %+v", u)
	}
}

// smallDisk returns a directory that is a disk of its own.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	base := testDir(t)
	root, image := filepath.Join(base, "small"), filepath.Join(base, "disk")
	for _, c := range []string{
		"truncate -s " + size + " " + image, "mkfs.ext4 -q -O ^has_journal -m 0 " +
			image, "mkdir " + root, "mount -o loop " + image + " " + root,
	} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c",
			c).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	return root
}

// TestDiskFull: on a disk that is full, reads get what they ask for, the background stops, and goes
// on when there is room.
func TestDiskFull(t *testing.T) {
	const files, size = 64, 256 << 10
	blob, lines := manyFiles(t, 7, files, size)
	w := newWorld(t, blob)
	w.index(nil)
	root := smallDisk(t, "24M")
	ballast := filepath.Join(root, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	table := w.openWith(Options{Root: root, Mode: EROFS, Fetch: fetch.Options{Fill: fetch.All},
		Cache: cache.Options{
			FaultPause: 4 * time.Second,
		}})
	dir := w.mountAll(table)[0]
	mustList(t, dir, lines)
	// Readers do not wait for what is written of what they read.
	eventually(t, "the background stops", func() bool {
		c := table.Cache().Status()
		return strings.Contains(c.Fault, "no space left") && !c.PauseUntil.IsZero() &&
			c.Faults > 0 && table.cache.Pause() > 0
	})
	if out, err := exec.CommandContext(t.Context(), "df", "--output=avail", "-B1",
		root).Output(); err != nil || len(strings.Fields(string(out))) != 2 ||
		len(strings.Fields(string(out))[1]) > 6 {
		t.Errorf("the disk was not full: %s, %v", out, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the layer is whole", func() bool {
		s := table.Status()[0]
		return s.Present == s.Total
	})
	if c := table.Cache().Status(); c.Fault != "" {
		t.Errorf("status: %+v", c)
	}
	mustList(t, dir, lines)
	if err := table.Close(); err != nil {
		t.Error(err)
	}
	if err := table.clearMounts(w.layers[0]); err != nil {
		t.Error(err)
	}
}

// TestDiskFullMakesRoom: what no container uses goes from a disk that is full.
func TestDiskFullMakesRoom(t *testing.T) {
	const files, size = 48, 128 << 10
	old, oldLines := manyFiles(t, 11, files, size)
	fresh, freshLines := manyFiles(t, 12, files, size)
	w := newWorld(t, old, fresh)
	w.index(nil)
	inUse := map[digest.Digest]bool{}
	table := w.openWith(Options{Root: smallDisk(t, "20M"), Mode: EROFS,
		Fetch: fetch.Options{Fill: fetch.None}, Cache: cache.Options{
			InUse: func(context.Context) (map[digest.Digest]bool, error) { return inUse, nil },
		}})
	inUse[w.layers[1]] = true
	dirs := w.mountAll(table)
	mustList(t, dirs[0], oldLines)
	ballast, err := os.Create(filepath.Join(table.o.Root, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	fill := func() {
		for _, n := range []int{64 << 10, 1 << 10} {
			for err := error(nil); err == nil; {
				_, err = ballast.Write(make([]byte, n))
			}
		}
	}
	fill()
	// Somebody who takes at once whatever is free, until something has gone.
	var greedy sync.WaitGroup
	enough := make(chan struct{})
	greedy.Go(func() {
		defer ballast.Close()
		for {
			select {
			case <-enough:
				return
			default:
				fill()
			}
		}
	})
	end := sync.OnceFunc(func() { close(enough); greedy.Wait() })
	defer end()
	mustList(t, dirs[1], freshLines)
	eventually(t, "what nobody uses has gone", func() bool {
		return table.Cache().Status().Evicted >= files*size
	})
	end()
	present := func(layer int) (n int64) {
		for _, s := range table.Status() {
			if s.Layer == w.layers[layer] {
				n = s.Present
			}
		}
		return n
	}
	eventually(t, "what is read stays again", func() bool {
		// The first time it may all have come to the page cache while there was no room for it.
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		mustList(t, dirs[1], freshLines)
		return present(1) > 0
	})
	if n := present(0); n > 0 {
		t.Errorf("the layer that nobody uses has %d bytes", n)
	}
	if err := table.Close(); err != nil {
		t.Error(err)
	}
	for _, d := range w.layers {
		if err := table.clearMounts(d); err != nil {
			t.Error(err)
		}
	}
}

// harm overwrites some bytes of the layer's device.
func harm(t *testing.T, table *Table, d digest.Digest, offs ...int64) {
	t.Helper()
	l, err := table.store.Layer(d)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := os.OpenFile(l.DevicePath(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range offs {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{b[0] ^ 4}, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// awaitProof waits for the check that follows the last span of the table's layer.
func awaitProof(t *testing.T, table *Table) {
	t.Helper()
	v := table.opened(false)[0]
	defer func() {
		if t.Failed() {
			t.Logf("record %+v, status %+v, cache %+v", v.store.Record(), table.Status(),
				table.Cache().Status())
		}
	}()
	eventually(t, "the layer is proved", func() bool {
		r := v.store.Record()
		return r.State != store.Lazy && len(r.Vouchers) == 0
	})
	v.proof.Settling()() // the check has it until it has ended
}

func TestVerify(t *testing.T) {
	const files, size = 16, 128 << 10
	blob, lines := manyFiles(t, 8, files, size)
	for name, c := range map[string]struct {
		mode   Mode
		index  bool
		broken bool // the registry
		cut    bool
	}{
		"lazy":             {mode: EROFS, index: true},
		"lazy, cut":        {mode: EROFS, index: true, cut: true},
		"local":            {mode: Auto},
		"local, cut":       {mode: Auto, cut: true},
		"no registry":      {mode: Auto, broken: true},
		"lazy, no network": {mode: EROFS, index: true, broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, blob)
			if c.index {
				w.index(nil)
			}
			root := testDir(t)
			var o cache.Options
			if c.index {
				o.Size = 2_600_000 // too little for a layer that cannot go in parts
			}
			table := w.openWith(Options{Root: root, Mode: c.mode,
				Fetch: fetch.Options{Fill: fetch.None}, Cache: o})
			dir := w.mountAll(table)[0]
			mustList(t, dir, lines)
			d := w.layers[0]
			ok, err := table.Verify(t.Context(), d)
			if err != nil || ok.Wrong != 0 || ok.Error != "" || ok.Bytes < files*size {
				t.Fatalf("before: %+v, %v", ok, err)
			}
			awaitProof(t, table) // it would find the harm first
			harm(t, table, d, 700, 700_000, 700_001, 1_200_000)
			wrong := 3 // spans
			if c.cut {
				l, _ := table.store.Layer(d)
				if err := os.Truncate(l.DevicePath(), 1_500_000); err != nil {
					t.Fatal(err)
				}
				wrong = 0
				l.Close()
			}
			w.broken.Store(c.broken)
			got, err := table.Verify(t.Context(), d)
			if err != nil || (wrong > 0 && got.Wrong != wrong) || got.Wrong == 0 {
				t.Fatalf("%+v, %v", got, err)
			}
			if c.broken && !c.index {
				if got.Error == "" || got.Repaired == got.Wrong {
					t.Errorf("without a registry: %+v", got)
				}
				return
			}
			if got.Error != "" || got.Repaired != got.Wrong {
				t.Errorf("%+v", got)
			}
			w.broken.Store(false)
			if c := table.Cache().Status(); c.Corrupt < int64(got.Wrong) {
				t.Errorf("status: %+v", c)
			}
			again, err := table.Verify(t.Context(), d)
			if err != nil || again.Wrong != 0 || again.Error != "" {
				t.Fatalf("afterwards: %+v, %v", again, err)
			}
			// A new mount, which has nothing in the page cache.
			if err := table.Unmount(d); err != nil {
				t.Fatal(err)
			}
			mustList(t, w.mountAll(table)[0], lines)
		})
	}
}

func TestVerifyIndex(t *testing.T) {
	blob, lines := manyFiles(t, 9, 4, 64<<10)
	w := newWorld(t, blob)
	root := testDir(t)
	table := w.open(root, Auto)
	w.mountAll(table)
	l, err := table.store.Layer(w.layers[0])
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(l.IndexPath())
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-100] ^= 1
	if err := os.WriteFile(l.IndexPath(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	got, err := table.Verify(t.Context(), w.layers[0])
	if err != nil || !strings.Contains(got.Error, "restart micad") {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	table = w.open(root, Auto)
	mustList(t, w.mountAll(table)[0], lines)
	if got, err := table.Verify(t.Context(), w.layers[0]); err != nil || got.Error != "" {
		t.Errorf("after the restart: %+v, %v", got, err)
	}
}

func TestScrub(t *testing.T) {
	const files, size = 8, 64 << 10
	blob, lines := manyFiles(t, 10, files, size)
	w := newWorld(t, blob)
	w.index(nil)
	table := w.openWith(Options{Root: testDir(t), Mode: EROFS,
		Fetch: fetch.Options{Fill: fetch.None}, Cache: cache.Options{Size: 680_000,
			Scrub: time.Second}})
	mustList(t, w.mountAll(table)[0], lines)
	awaitProof(t, table) // it would find the harm as well
	harm(t, table, w.layers[0], 5000)
	eventually(t, "a scrub finds it", func() bool { return table.Cache().Status().Corrupt == 1 })
	eventually(t, "the scrub ends", func() bool {
		return !table.Cache().Status().LastScrub.IsZero()
	})
	eventually(t, "it is not there any more", func() bool {
		s := table.Status()[0]
		return s.Present < s.Total
	})
}
