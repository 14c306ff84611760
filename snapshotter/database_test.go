package snapshotter

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A database that is damaged is replaced by its copy, and if there is none by an empty one; what
// containers may use stays.
func TestDamagedDatabase(t *testing.T) {
	damages := map[string]func(b []byte) []byte{
		"zeros":     func(b []byte) []byte { return make([]byte, len(b)) },
		"empty":     func([]byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)/4] },
		"rubbish": func(b []byte) []byte { // behind the two pages that bbolt checks
			return append(b[:8192:8192], bytes.Repeat([]byte{0xa5}, len(b)-8192)...)
		},
	}
	for name, damage := range damages {
		for _, copied := range []bool{true, false} {
			if name == "empty" && !copied {
				continue // as before the first start
			}
			t.Run(name+map[bool]string{true: " with a copy"}[copied], func(t *testing.T) {
				root, layers, img := t.TempDir(), newFakeLayers(t), imageOf("a", "base", "a")
				s := open(t, root, layers)
				mounts, err := s.Prepare(t.Context(), "container", mustPull(t, s, img))
				if err != nil {
					t.Fatal(err)
				}
				upper := upperOf(t, mounts[0].Options)
				dir := t.TempDir()
				if err := unix.Mount("overlay", dir, "overlay", 0,
					strings.Join(mounts[0].Options, ",")); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
						t.Error(err)
					}
				})
				copied := copied && awaitCopy(t, s)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(root, databaseName)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !copied {
					_ = os.Remove(filepath.Join(root, copyName))
				}
				if err := os.WriteFile(path, damage(b), 0o600); err != nil {
					t.Fatal(err)
				}

				layers.restart()
				s = open(t, root, layers)
				if !s.MayHaveForgotten() {
					t.Error("the damage was not noticed")
				}
				if err := s.Restore(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := s.Cleanup(t.Context()); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(upper); err != nil {
					t.Errorf("the directory of a running container: %v", err)
				}
				if gone := layers.removals(); len(gone) > 0 {
					t.Errorf("removed %v", gone)
				}
				if copied {
					if got, err := s.Mounts(t.Context(), "container"); err != nil ||
						!reflect.DeepEqual(got, mounts) {
						t.Errorf("Mounts = %v, %v; want %v", got, err, mounts)
					}
				}
				other, err := s.Prepare(t.Context(), "another container", mustPull(t, s, img))
				if err != nil {
					t.Fatal(err)
				}
				if upperOf(t, other[0].Options) == upper {
					t.Error("a new container got the directory of a running one")
				}
			})
		}
	}
}

func upperOf(t *testing.T, options []string) string {
	t.Helper()
	for _, o := range options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir
		}
	}
	t.Fatalf("no upper directory in %q", options)
	return ""
}

// awaitCopy waits until the copy of the database has all snapshots.
func awaitCopy(t *testing.T, s *Snapshotter) bool {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(s.root, copyName))
		if err == nil && bytes.Contains(b, []byte("container")) {
			return true
		}
	}
	t.Fatal("no copy of the database")
	return false
}
