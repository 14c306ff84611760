package mountinfo_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

func mountTmpfs(t *testing.T, source, dir string) {
	t.Helper()
	if err := unix.Mount(source, dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestAt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd name\twith\\all")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	expect := func(path string, sources ...string) {
		t.Helper()
		mounts, err := mountinfo.At(path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range mounts {
			if m.Type != "tmpfs" || m.Device == "" || m.ID == 0 || m.Root != "/" {
				t.Errorf("%+v", m)
			}
			got = append(got, m.Source)
		}
		if len(got) != len(sources) {
			t.Fatalf("%s: got %q, want %q", path, got, sources)
		}
		for i := range got {
			if got[i] != sources[i] {
				t.Fatalf("%s: got %q, want %q", path, got, sources)
			}
		}
		top, ok, err := mountinfo.Top(path)
		if err != nil || ok != (len(sources) > 0) || ok && top.Source != sources[len(sources)-1] {
			t.Fatalf("%s: top %+v, %v, %v", path, top, ok, err)
		}
		if id, err := mountinfo.ID(path); err != nil || ok != (id == top.ID) {
			t.Errorf("%s: number %d, %v, want %d", path, id, err, top.ID)
		}
		want := mountinfo.Root{ID: top.ID, Device: top.Device}
		if root, there, err := mountinfo.RootAt(path); err != nil || there != ok || ok && root != want {
			t.Errorf("%s: root %+v, %t, %v, want %+v, %t", path, root, there, err, want, ok)
		}
	}
	expect(dir)
	mountTmpfs(t, "one", dir)
	expect(dir, "one")
	mountTmpfs(t, "two", dir)
	mountTmpfs(t, "three", dir)
	expect(dir, "one", "two", "three")

	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	expect(sub)
	mountTmpfs(t, "below", sub)
	expect(sub, "below")
	expect(dir, "one", "two", "three")

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	expect(filepath.Join(link, "sub"), "below")
	expect(link) // the link itself is no mount point
}

func TestAtMissing(t *testing.T) {
	if _, err := mountinfo.At(filepath.Join(t.TempDir(), "no", "such")); err == nil {
		t.Error("no error for a directory that is not there")
	}
}

// BenchmarkAt asks what is mounted at a directory, of a table that does not change.
func BenchmarkAt(b *testing.B) {
	for b.Loop() {
		if all, err := mountinfo.At("/proc"); err != nil || len(all) == 0 {
			b.Fatal(all, err)
		}
	}
}
