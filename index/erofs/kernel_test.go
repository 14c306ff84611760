package erofs_test

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

	"github.com/mica-snapshotter/mica/index/erofs"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// mountTree mounts an index file over its device, as micad does, until the test ends.
func mountTree(t testing.TB, file, device string) string {
	t.Helper()
	at := t.TempDir()
	if err := unix.Mount(file, at, "erofs", unix.MS_RDONLY|unix.MS_NODEV,
		"device="+device); err != nil {
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
func fsck(t testing.TB, file, device string) string {
	t.Helper()
	tool := os.Getenv("MICA_FSCK_EROFS")
	if tool == "" {
		var err error
		if tool, err = exec.LookPath("fsck.erofs"); err != nil {
			t.Fatal("fsck.erofs 1.7 or later is needed: `make test` installs it; or set MICA_FSCK_EROFS")
		}
	}
	to := filepath.Join(t.TempDir(), "extracted")
	out, err := exec.Command(tool, "-d3", "--device="+device, "--extract="+to,
		file).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("successfully")) ||
		bytes.Contains(out, []byte("<E>")) {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
	return to
}

// TestKernel compares all that the kernel shows of a tree with what Write was given.
func TestKernel(t *testing.T) {
	for name, l := range map[string]*Layer{
		"nasty": Nasty(),
		"empty": LayerOf(),
		"large root": LayerOf(Dir("/", Xattr("user.root", strings.Repeat("r", 450))),
			Entries(1000, func(i int) Entry {
				return File(fmt.Sprintf("%03d", i),
					fmt.Sprint(i))
			})),
		"20000 entries": LayerOf(Entries(20000, func(i int) Entry {
			return File(fmt.Sprintf("d/%x-%s", i*7919%20000, strings.Repeat("x", i%100)), "")
		})),
	} {
		t.Run(name, func(t *testing.T) {
			file, device := l.Files(t)
			compareKernel(t, l, mountTree(t, file, device), device)
		})
	}
}

func compareKernel(t *testing.T, l *Layer, root, device string) {
	dev, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	tree, counts, nids := l.Open(t).Tree(), links(l), map[*erofs.Node]uint64{l.Draft.Root: rootNid}
	walk(l, func(p string, n, parent *erofs.Node) {
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
		size := map[uint32]int64{unix.S_IFREG: n.Size, unix.S_IFLNK: int64(len(n.Target)),
			unix.S_IFDIR: st.Size}[n.Mode&unix.S_IFMT]
		sec, nsec := n.Mtime.Unix(), n.Mtime.Nanosecond()
		if n.Mtime.IsZero() {
			sec = 0
		}
		got := fmt.Sprint(st.Mode, st.Uid, st.Gid, st.Nlink, st.Ino, st.Size, st.Rdev, st.Mtim.Sec,
			st.Mtim.Nsec)
		want := fmt.Sprint(n.Mode, n.UID, n.GID, counts[n], nids[n], size, n.Rdev, sec, nsec)
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

func kernelXattrs(t *testing.T, at string, n *erofs.Node) {
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

func kernelContent(t *testing.T, l *Layer, at string, n *erofs.Node, device io.ReaderAt) {
	t.Helper()
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ranges := []piece{{0, min(n.Size, 1<<20)}}
	if n.Size > 1<<20 { // pieces and holes of large files: their edges, and anywhere
		ranges = append(ranges, piece{n.Size - 1000, 1000})
		for _, e := range n.Extents {
			ranges = append(ranges, piece{max(e.File-5000, 0), 10000},
				piece{max(e.File+e.Size-5000, 0), 10000})
		}
		for range 50 {
			ranges = append(ranges, piece{rand.Int64N(n.Size), 3000})
		}
	}
	for _, r := range ranges {
		got := make([]byte, r.size)
		k, err := f.ReadAt(got, r.off)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:k], content(t, device, n, r.off, r.size)) {
			t.Errorf("%q: wrong content at %d+%d", at, r.off, r.size)
		}
	}
}

func kernelDir(t *testing.T, at string, n *erofs.Node) {
	t.Helper()
	list, err := os.ReadDir(at)
	if err != nil || len(list) != len(n.Children) {
		t.Fatalf("%q: %d entries, want %d, %v", at, len(list), len(n.Children), err)
	}
	for _, e := range list {
		c := n.Children[e.Name()]
		if c == nil || c.Mode&unix.S_IFMT != modeOf(e.Type()) {
			t.Errorf("%q: entry %q of type %v", at, e.Name(), e.Type())
		}
	}
	if _, err := os.Lstat(filepath.Join(at, "no such name")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%q: a name that is not there: %v", at, err)
	}
}

// modeOf returns the type bits of st_mode for what os.ReadDir says of d_type.
func modeOf(m fs.FileMode) uint32 {
	return map[fs.FileMode]uint32{
		0: unix.S_IFREG, fs.ModeDir: unix.S_IFDIR, fs.ModeSymlink: unix.S_IFLNK,
		fs.ModeNamedPipe: unix.S_IFIFO, fs.ModeSocket: unix.S_IFSOCK,
		fs.ModeDevice: unix.S_IFBLK, fs.ModeDevice | fs.ModeCharDevice: unix.S_IFCHR,
	}[m]
}

// TestKernelLarge is about files beyond 4 GiB and a device beyond 4 GiB.
func TestKernelLarge(t *testing.T) {
	const gib = int64(1) << 30
	l := LayerOf(
		func(l *Layer) {
			l.Put("whole", &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: 5*gib + 777,
				Extents: []erofs.Extent{{Device: 512, Size: 5*gib + 777}}})
			l.Put("far", &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: 4096,
				Extents: []erofs.Extent{{Device: 6 * gib, Size: 4096}}})
			l.Put("hole", &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: 300 * gib,
				Extents: []erofs.Extent{{File: 100 * gib, Device: 6 * gib, Size: gib}}})
			l.Put("sparse", &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: 9*gib + 4096,
				Extents: []erofs.Extent{{File: 4096, Device: 2 * gib, Size: 8192},
					{File: 9 * gib, Device: 6 * gib, Size: 4096}}})
		},
	)
	l.Finish(8 * gib)
	file, device := l.Files(t)
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{512, 4096, gib, 2 * gib, 2*gib + 4096, 4*gib - 100, 4 * gib,
		5 * gib, 5*gib + 900, 6 * gib, 7*gib - 200} {
		if _, err := f.WriteAt(fmt.Appendf(nil, "here is %d", off), off); err != nil {
			t.Fatal(err)
		}
	}
	compareKernel(t, l, mountTree(t, file, device), device)
	if st, err := os.Stat(file); err != nil || st.Size() > 64<<20 {
		t.Errorf("index of %d bytes, %v", st.Size(), err)
	}
}

// TestFsck lets fsck.erofs judge a tree and extract it.
func TestFsck(t *testing.T) {
	for name, l := range map[string]*Layer{"nasty": Nasty(), "empty": LayerOf()} {
		t.Run(name, func(t *testing.T) {
			file, device := l.Files(t)
			root := fsck(t, file, device)
			walk(l, func(p string, n, _ *erofs.Node) {
				st, err := os.Lstat(root + p)
				if err != nil {
					t.Fatalf("%q: %v", p, err)
				}
				if modeOf(st.Mode().Type()) != n.Mode&unix.S_IFMT {
					t.Errorf("%q: extracted as %v", p, st.Mode())
				}
				if n.Mode&unix.S_IFMT == unix.S_IFREG {
					// fsck.erofs seeks over holes, and leaves one at the end away.
					if err := os.Truncate(root+p, n.Size); err != nil {
						t.Fatal(err)
					}
					kernelContent(t, l, root+p, n, bytes.NewReader(l.Device.Bytes()))
				}
			})
		})
	}
}
