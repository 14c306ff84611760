package fuse_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
	image "github.com/mica-snapshotter/mica/index/erofs"
)

// mountTree mounts a layer's tree for the test's duration.
func mountTree(t *testing.T, l *layertest.Layer, dev fuse.Device) *fuse.Mount {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	if dev == nil {
		dev = &memDevice{data: l.Data}
	}
	m, err := fuse.MountTree(t.Context(), t.TempDir(), l.Open(t), dev, fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, m, ignore) })
	return m
}

// walk lists a tree by a child process.
func walk(t *testing.T, dir string) map[string]entry {
	t.Helper()
	entries := make(map[string]entry)
	d := json.NewDecoder(bytes.NewReader(inChild(t, "walk", dir)))
	for {
		var e entry
		err := d.Decode(&e)
		if err == io.EOF {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		entries[e.Path] = e
	}
}

// expected is what a walk of a draft's tree must show, but for the numbers that
// Write chooses.
func expected(l *layertest.Layer) map[string]entry {
	links := make(map[*image.Node]uint64)
	entries := make(map[string]entry)
	var visit func(path string, n *image.Node)
	visit = func(path string, n *image.Node) {
		if n.Children == nil {
			links[n]++
		} else {
			links[n] = 2
			for name, c := range n.Children {
				visit(filepath.Join(path, name), c)
				if c.Children != nil {
					links[n]++
				}
			}
		}
		e := entry{
			Path: jsonString(path), Mode: n.Mode, UID: n.UID, GID: n.GID, Rdev: n.Rdev,
			Sec: n.Mtime.Unix(), Nsec: int64(n.Mtime.Nanosecond()),
			Target: n.Target, Xattrs: map[string]string{},
		}
		for k, v := range n.Xattrs {
			e.Xattrs[k] = jsonString(v)
		}
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			e.Size = int64(len(n.Target))
		case unix.S_IFREG:
			e.Size = n.Size
			content := make([]byte, n.Size)
			for _, x := range n.Extents {
				copy(content[x.File:], l.Data[x.Device:x.Device+x.Size])
			}
			sum := sha256.Sum256(content)
			e.Sum = hex.EncodeToString(sum[:])
		}
		entries[e.Path] = e
	}
	visit(".", l.Draft.Root)
	byPath := make(map[string]*image.Node)
	var name func(path string, n *image.Node)
	name = func(path string, n *image.Node) {
		byPath[jsonString(path)] = n
		for k, c := range n.Children {
			name(filepath.Join(path, k), c)
		}
	}
	name(".", l.Draft.Root)
	for path, e := range entries {
		e.Nlink = links[byPath[path]]
		entries[path] = e
	}
	return entries
}

// jsonString is s as it comes back from JSON, where bytes that are not UTF-8 do
// not.
func jsonString(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	var out string
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}

func TestTreeShowsEverything(t *testing.T) {
	l := layertest.Nasty().Make(t)
	m := mountTree(t, l, nil)
	got, want := walk(t, m.Dir()), expected(l)
	inodes := make(map[uint64][]string)
	for path, e := range got {
		inodes[e.Ino] = append(inodes[e.Ino], path)
		if e.Blksize != 4096 || e.Blocks != (e.Size+511)/512 {
			t.Errorf("%s: %d blocks, unit %d, for %d bytes", path, e.Blocks, e.Blksize, e.Size)
		}
		e.Ino, e.Blocks, e.Blksize = 0, 0, 0
		if e.Mode&unix.S_IFMT == unix.S_IFDIR {
			e.Size = 0
		}
		if w := want[path]; !reflect.DeepEqual(e, w) {
			t.Errorf("%s:\n got %+v\nwant %+v", path, e, w)
		}
	}
	for path := range want {
		if _, ok := got[path]; !ok {
			t.Errorf("%s is missing", path)
		}
	}
	for _, paths := range inodes {
		slices.Sort(paths)
		if len(paths) > 1 &&
			!slices.Equal(paths, []string{"dir/hard", "dir/sub/again", "other/third"}) {
			t.Errorf("one inode: %q", paths)
		}
	}
	if got["."].Ino != 1 {
		t.Errorf("the root is inode %d", got["."].Ino)
	}
	if n := m.Stats().Errors; n > 0 {
		t.Errorf("%d errors", n)
	}
}

// The kernel's own EROFS shows the same of the same file, inode numbers included.
func TestTreeEqualsErofs(t *testing.T) {
	l := layertest.Nasty().Make(t)
	m := mountTree(t, l, nil)
	dir := t.TempDir()
	if _, err := erofs.Mount(l.Index, l.Device, dir, erofs.Options{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := erofs.Unmount(dir); err != nil {
			t.Error(err)
		}
	}()
	got, want := walk(t, m.Dir()), walk(t, dir)
	if len(got) != len(want) {
		t.Errorf("%d entries, EROFS has %d", len(got), len(want))
	}
	for path, e := range got {
		w := want[path]
		w.Blksize = e.Blksize
		if !reflect.DeepEqual(e, w) {
			t.Errorf("%s:\n fuse %+v\nerofs %+v", path, e, w)
		}
	}
}

func TestTreeReaddirCookies(t *testing.T) {
	l := layertest.Nasty().Make(t)
	m := mountTree(t, l, nil)
	want := []string{".", ".."}
	for name := range l.Draft.Root.Children["many"].Children {
		want = append(want, name)
	}
	slices.Sort(want)
	for _, chunk := range []string{"64", "300", "32768"} {
		got := strings.Fields(string(inChild(t, "names", filepath.Join(m.Dir(), "many"), chunk)))
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("buffers of %s bytes: %d names, want %d, or others", chunk, len(got),
				len(want))
		}
	}
}

func TestTreeXattrs(t *testing.T) {
	l := layertest.Nasty().Make(t)
	m := mountTree(t, l, nil)
	capable := filepath.Join(m.Dir(), "capable")
	if got := inChild(t, "xattr", capable, "user.long"); len(got) != 1000 {
		t.Errorf("user.long has %d bytes", len(got))
	}
	for range 2 {
		if _, err := tryChild(t, "xattr", capable, "user.none"); !errors.Is(err, unix.ENODATA) {
			t.Errorf("got %v, want ENODATA", err)
		}
	}

	b := layertest.NewBuilder()
	b.File("plain", 0o644, []byte("x"))
	m = mountTree(t, b.Make(t), nil)
	for range 3 {
		if _, err := tryChild(t, "xattr", filepath.Join(m.Dir(), "plain"),
			"user.none"); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("got %v, want EOPNOTSUPP", err)
		}
	}
	if n := m.Stats().Requests["getxattr"]; n != 1 {
		t.Errorf("%d getxattr requests on a layer without attributes, want 1", n)
	}
}

// Once seen, nothing is asked for again. Several tries, as the kernel may drop its
// caches at any time, and other programs may make it.
func TestTreeIsCached(t *testing.T) {
	l := layertest.Nasty().Make(t)
	m := mountTree(t, l, nil)
	walk(t, m.Dir())
	kinds := []string{"lookup", "getattr", "read", "readlink"}
	var more map[string]uint64
	for range 5 {
		before := m.Stats()
		walk(t, m.Dir())
		after := m.Stats()
		more = make(map[string]uint64)
		for _, kind := range kinds {
			if n := after.Requests[kind] - before.Requests[kind]; n > 0 {
				more[kind] = n
			}
		}
		if len(more) == 0 {
			break
		}
	}
	if len(more) > 0 {
		t.Errorf("the same walk asks again: %v", more)
	}
	for _, kind := range []string{"open", "opendir", "flush", "release"} {
		if n := m.Stats().Requests[kind]; n > 1 {
			t.Errorf("%s: %d requests, want at most 1", kind, n)
		}
	}
}

func TestTreeErrorClears(t *testing.T) {
	l := layertest.Nasty().Make(t)
	for _, top := range []string{"fuse", "erofs"} {
		t.Run(top, func(t *testing.T) {
			var broken atomic.Bool
			dev := &memDevice{data: l.Data, before: func(context.Context, int64, int) error {
				if broken.Load() {
					return errors.New("registry is away")
				}
				return nil
			}}
			dir := mountTop(t, top, l, dev, erofs.Options{})
			broken.Store(true)
			for range 3 {
				if _, err := tryChild(t, "read", filepath.Join(dir, "big"), "0",
					"-1"); !errors.Is(err, unix.EIO) {
					t.Fatalf("got %v, want EIO", err)
				}
			}
			broken.Store(false)
			sum := sha256.Sum256(inChild(t, "read", filepath.Join(dir, "big"), "0", "-1"))
			if got := hex.EncodeToString(sum[:]); got != expected(l)["big"].Sum {
				t.Error("wrong bytes after the fault has gone")
			}
		})
	}
}

// mountTop mounts a layer either as a tree, or with EROFS over a device mount,
// and returns the directory.
func mountTop(
	t *testing.T, top string, l *layertest.Layer, dev fuse.Device, o erofs.Options,
) string {
	t.Helper()
	if top == "fuse" {
		return mountTree(t, l, dev).Dir()
	}
	m := mountDevice(t, dev, fuse.Options{})
	dir := t.TempDir()
	if _, err := erofs.Mount(l.Index, m.DevicePath(), dir, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := erofs.Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestConcurrentRandomReads(t *testing.T) {
	l := layertest.Nasty().Make(t)
	ref := filepath.Join(t.TempDir(), "ref")
	content := l.Draft.Root.Children["big"].Extents[0]
	if err := os.WriteFile(ref, l.Data[content.Device:content.Device+content.Size],
		0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, top string
		o         erofs.Options
	}{
		{"fuse", "fuse", erofs.Options{}},
		{"erofs", "erofs", erofs.Options{}},
		{"erofs buffered", "erofs", erofs.Options{Buffered: true}},
		{"erofs loop", "erofs", erofs.Options{Backing: erofs.Loop}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var calls atomic.Int64
			dev := &memDevice{data: l.Data,
				before: func(ctx context.Context, _ int64, _ int) error {
					if calls.Add(1)%7 == 0 {
						time.Sleep(3 * time.Millisecond)
					}
					return ctx.Err()
				}}
			dir := mountTop(t, tt.top, l, dev, tt.o)
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					if _, err := tryChild(t, "random", filepath.Join(dir, "big"), ref,
						strconv.Itoa(i), "200", "200000"); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// kill -9 of a reader ends it, and the interrupt reaches the device.
func TestInterrupt(t *testing.T) {
	l := layertest.Nasty().Make(t)
	for _, tt := range []struct {
		name, top, flag string
		o               erofs.Options
		interrupt       bool // the kernel sends one: the read is not in the background
	}{
		{"fuse", "fuse", "", erofs.Options{}, false},
		{"fuse direct", "fuse", "direct", erofs.Options{}, true},
		{"erofs", "erofs", "", erofs.Options{}, false},
		{"erofs buffered", "erofs", "", erofs.Options{Buffered: true}, false},
		{"erofs loop", "erofs", "", erofs.Options{Backing: erofs.Loop}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			entered, left := make(chan struct{}, 1000), make(chan error, 1000)
			release := make(chan struct{})
			dev := &memDevice{data: l.Data,
				before: func(ctx context.Context, _ int64, _ int) error {
					entered <- struct{}{}
					select {
					case <-ctx.Done():
						left <- ctx.Err()
						return ctx.Err()
					case <-release:
						return nil
					}
				}}
			dir := mountTop(t, tt.top, l, dev, tt.o)
			defer close(release)
			cmd := childCmd(t, "read", filepath.Join(dir, "big"), "0", "1048576", tt.flag)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-entered
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
			}
			if !tt.interrupt {
				return
			}
			select {
			case err := <-left:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("the context ended with %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("the read's context was not cancelled")
			}
		})
	}
}

func TestTreeRefusesOtherDevice(t *testing.T) {
	l := layertest.Nasty().Make(t)
	if m, err := fuse.MountTree(t.Context(), t.TempDir(), l.Open(t), &memDevice{data: l.Data[:512]},
		fuse.Options{}); err == nil {
		t.Errorf("mounted with a device of another size: %v", m.Unmount())
	}
}
