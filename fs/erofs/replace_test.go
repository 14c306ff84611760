package erofs_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// TestReplace replaces a mount again and again while somebody opens a file through the path: it is
// always there, and an open file stays what it was.
func TestReplace(t *testing.T) {
	content := layertest.Random(300_001, 8)
	l := smallLayer(t, content)
	dir, from := filepath.Join(t.TempDir(), "m"), filepath.Join(t.TempDir(), "new")
	for _, d := range []string{dir, from} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := erofs.Replace(from, dir); !errors.Is(err, unix.EINVAL) {
		t.Errorf("replaced where nothing was mounted: %v", err)
	}
	mount := func(at string) {
		t.Helper()
		if _, err := erofs.Mount(l.Index, l.Device, at, erofs.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	mount(dir)
	defer func() { _ = erofs.Unmount(dir) }()
	// Not this process: it serves nothing here, but others do that are tested the same way.
	watch := exec.CommandContext(t.Context(), "sh", "-c",
		`while [ -e "$0" ]; do read x < "$1" || { echo "no file"; exit 1; }; done`,
		l.Index, filepath.Join(dir, "file"))
	var said bytes.Buffer
	watch.Stdout, watch.Stderr = &said, &said
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	first, _, err := mountinfo.Top(dir)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	for range 100 {
		mount(from)
		if err := erofs.Replace(from, dir); err != nil {
			t.Fatal(err)
		}
		if m, ok, err := mountinfo.Top(from); ok || err != nil {
			t.Fatalf("still mounted: %+v, %v", m, err)
		}
	}
	if m, ok, err := mountinfo.Top(dir); err != nil || !ok || m.ID == first.ID {
		t.Errorf("mounted is %+v, %v", m, err)
	}
	got := make([]byte, len(content))
	if _, err := held.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the open file is another: %v", err)
	}
	if err := os.Remove(l.Index); err != nil {
		t.Fatal(err)
	}
	if err := watch.Wait(); err != nil || said.Len() > 0 {
		t.Errorf("watching: %v\n%s", err, said.Bytes())
	}
}
