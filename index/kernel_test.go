package index

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mountTree mounts an index file over its device, as micad does, until the test ends.
func mountTree(t testing.TB, index, device string) string {
	t.Helper()
	at := t.TempDir()
	if err := unix.Mount(index, at, "erofs", unix.MS_RDONLY|unix.MS_NODEV, "device="+device); err != nil {
		t.Fatalf("mount: %v (needs root and Linux 6.12 or later)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

// fsck runs fsck.erofs on an index, extracts it and returns the directory.
func fsck(t testing.TB, index, device string) string {
	t.Helper()
	tool := os.Getenv("MICA_FSCK_EROFS")
	if tool == "" {
		var err error
		if tool, err = exec.LookPath("fsck.erofs"); err != nil {
			t.Fatal("fsck.erofs 1.7 or later is needed: `make test` installs it; or set MICA_FSCK_EROFS")
		}
	}
	to := filepath.Join(t.TempDir(), "extracted")
	out, err := exec.Command(tool, "-d3", "--device="+device, "--extract="+to, index).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("successfully")) || bytes.Contains(out, []byte("<E>")) {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
	return to
}

// TestKernel compares all that the kernel shows of a tree with what Write was given.
func TestKernel(t *testing.T) {
	for name, l := range map[string]*layer{
		"nasty": nasty(),
		"empty": layerOf(),
		"large root": layerOf(dir("/", xattr("user.root", strings.Repeat("r", 450))),
			entries(1000, func(i int) entry { return file(fmt.Sprintf("%03d", i), fmt.Sprint(i)) })),
		"20000 entries": layerOf(entries(20000, func(i int) entry {
			return file(fmt.Sprintf("d/%x-%s", i*7919%20000, strings.Repeat("x", i%100)), "")
		})),
	} {
		t.Run(name, func(t *testing.T) {
			index, device := l.files(t)
			compareKernel(t, l, mountTree(t, index, device), device)
		})
	}
}

func compareKernel(t *testing.T, l *layer, root, device string) {
	dev, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	tree, links, nids := l.open(t).Tree(), l.links(), map[*Node]uint64{l.draft.Root: rootNid}
	l.walk(func(p string, n, parent *Node) {
		at := root + p
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			t.Fatalf("%q: %v", p, err)
		}
		if n != parent {
			if nids[n], err = tree.Lookup(nids[parent], path.Base(p)); err != nil {
				t.Fatal(err)
			}
		}
		size := map[uint32]int64{unix.S_IFREG: n.Size, unix.S_IFLNK: int64(len(n.Target)), unix.S_IFDIR: st.Size}[n.Mode&unix.S_IFMT]
		sec, nsec := n.Mtime.Unix(), n.Mtime.Nanosecond()
		if n.Mtime.IsZero() {
			sec = 0
		}
		got := fmt.Sprint(st.Mode, st.Uid, st.Gid, st.Nlink, st.Ino, st.Size, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		want := fmt.Sprint(n.Mode, n.UID, n.GID, links[n], nids[n], size, n.Rdev, sec, nsec)
		if got != want {
			t.Errorf("%q: stat %s, want %s", p, got, want)
		}
		kernelXattrs(t, at, n)
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			kernelContent(t, l, at, n, dev)
		case unix.S_IFLNK:
			if target, err := os.Readlink(at); err != nil || target != n.Target {
				t.Errorf("%q: target %q, %v", p, target, err)
			}
		case unix.S_IFDIR:
			kernelDir(t, at, n)
		}
	})
}

func kernelXattrs(t *testing.T, at string, n *Node) {
	t.Helper()
	buf := make([]byte, 1<<16)
	size, err := unix.Llistxattr(at, buf)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.FieldsFunc(string(buf[:size]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	if want := slices.Sorted(maps.Keys(n.Xattrs)); !slices.Equal(names, want) {
		t.Errorf("%q: attributes %q, want %q", at, names, want)
	}
	for name, want := range n.Xattrs {
		size, err := unix.Lgetxattr(at, name, buf)
		if err != nil || string(buf[:max(size, 0)]) != want {
			t.Errorf("%q: attribute %q: %d bytes, %v, want %d", at, name, size, err, len(want))
		}
	}
}

func kernelContent(t *testing.T, l *layer, at string, n *Node, device io.ReaderAt) {
	t.Helper()
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ranges := []Range{{0, min(n.Size, 1<<20)}}
	if n.Size > 1<<20 { // pieces and holes of large files: their edges, and anywhere
		ranges = append(ranges, Range{n.Size - 1000, 1000})
		for _, e := range n.Extents {
			ranges = append(ranges, Range{max(e.File-5000, 0), 10000}, Range{max(e.File+e.Size-5000, 0), 10000})
		}
		for range 50 {
			ranges = append(ranges, Range{rand.Int64N(n.Size), 3000})
		}
	}
	for _, r := range ranges {
		got := make([]byte, r.Size)
		k, err := f.ReadAt(got, r.Off)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:k], l.content(t, device, n, r.Off, r.Size)) {
			t.Errorf("%q: wrong content at %d+%d", at, r.Off, r.Size)
		}
	}
}

func kernelDir(t *testing.T, at string, n *Node) {
	t.Helper()
	list, err := os.ReadDir(at)
	if err != nil || len(list) != len(n.Children) {
		t.Fatalf("%q: %d entries, want %d, %v", at, len(list), len(n.Children), err)
	}
	for _, e := range list {
		c := n.Children[e.Name()]
		if c == nil || typeOf(c.Mode) != typeOfFile(e.Type()) {
			t.Errorf("%q: entry %q of type %v", at, e.Name(), e.Type())
		}
	}
	if _, err := os.Lstat(filepath.Join(at, "no such name")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%q: a name that is not there: %v", at, err)
	}
}

// typeOfFile is typeOf for what os.ReadDir says of d_type.
func typeOfFile(m fs.FileMode) Type {
	return map[fs.FileMode]Type{
		0: Regular, fs.ModeDir: Directory, fs.ModeSymlink: Symlink, fs.ModeNamedPipe: FIFO, fs.ModeSocket: Socket,
		fs.ModeDevice: BlockDevice, fs.ModeDevice | fs.ModeCharDevice: CharDevice,
	}[m]
}

// TestKernelLarge is about files beyond 4 GiB and a device beyond 4 GiB.
func TestKernelLarge(t *testing.T) {
	const gib = int64(1) << 30
	l := layerOf(
		func(l *layer) {
			l.put("whole", &Node{Mode: unix.S_IFREG | 0o644, Size: 5*gib + 777, Extents: []Extent{{Device: 512, Size: 5*gib + 777}}}, nil)
			l.put("far", &Node{Mode: unix.S_IFREG | 0o644, Size: 4096, Extents: []Extent{{Device: 6 * gib, Size: 4096}}}, nil)
			l.put("hole", &Node{Mode: unix.S_IFREG | 0o644, Size: 300 * gib, Extents: []Extent{{File: 100 * gib, Device: 6 * gib, Size: gib}}}, nil)
			l.put("sparse", &Node{Mode: unix.S_IFREG | 0o644, Size: 9*gib + 4096,
				Extents: []Extent{{File: 4096, Device: 2 * gib, Size: 8192}, {File: 9 * gib, Device: 6 * gib, Size: 4096}}}, nil)
		},
	)
	l.finish(8 * gib)
	index, device := l.files(t)
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{512, 4096, gib, 2 * gib, 2*gib + 4096, 4*gib - 100, 4 * gib, 5 * gib, 5*gib + 900, 6 * gib, 7*gib - 200} {
		if _, err := f.WriteAt(fmt.Appendf(nil, "here is %d", off), off); err != nil {
			t.Fatal(err)
		}
	}
	compareKernel(t, l, mountTree(t, index, device), device)
	if st, err := os.Stat(index); err != nil || st.Size() > 64<<20 {
		t.Errorf("index of %d bytes, %v", st.Size(), err)
	}
}

// TestFsck lets fsck.erofs judge a tree and extract it.
func TestFsck(t *testing.T) {
	for name, l := range map[string]*layer{"nasty": nasty(), "empty": layerOf()} {
		t.Run(name, func(t *testing.T) {
			index, device := l.files(t)
			root := fsck(t, index, device)
			l.walk(func(p string, n, _ *Node) {
				st, err := os.Lstat(root + p)
				if err != nil {
					t.Fatalf("%q: %v", p, err)
				}
				if typeOfFile(st.Mode().Type()) != typeOf(n.Mode) {
					t.Errorf("%q: extracted as %v", p, st.Mode())
				}
				if n.Mode&unix.S_IFMT == unix.S_IFREG {
					// fsck.erofs seeks over holes, and leaves one at the end away.
					if err := os.Truncate(root+p, n.Size); err != nil {
						t.Fatal(err)
					}
					kernelContent(t, l, root+p, n, bytes.NewReader(l.device.Bytes()))
				}
			})
		})
	}
}
