package tree

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// make builds the tree that the cases below change.
func build(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "d/f"), []byte("text"), 0o644))
	must(t, os.Link(filepath.Join(root, "d/f"), filepath.Join(root, "hard")))
	must(t, os.WriteFile(filepath.Join(root, "g"), []byte("text"), 0o644))
	must(t, os.Symlink("d/f", filepath.Join(root, "s")))
	must(t, unix.Mknod(filepath.Join(root, "dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	for _, p := range []string{"d/f", "g", "s", "dev", "d", "."} {
		ts := unix.NsecToTimespec(time.Unix(1700000000, 123456789).UnixNano())
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, p), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return root
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func describe(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	must(t, Describe(&b, root))
	return b.String()
}

func TestDiffFindsEveryChange(t *testing.T) {
	want := describe(t, build(t))
	if n := Count(want); n != 7 {
		t.Fatalf("%d paths, want 7:\n%s", n, want)
	}
	if d := Diff(want, describe(t, build(t)), nil); d != "" {
		t.Fatalf("equal trees differ:\n%s", d)
	}
	touch := func(path string) error {
		ts := unix.NsecToTimespec(time.Unix(1700000000, 123456788).UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	for _, tt := range []struct {
		name, path string // path at which the difference is found
		change     func(root string) error
	}{
		{"content of the same length", "g", func(r string) error { return os.WriteFile(r+"/g", []byte("TEXT"), 0o644) }},
		{"mode", "g", func(r string) error { return os.Chmod(r+"/g", 0o640) }},
		{"set-uid bit", "g", func(r string) error { return unix.Chmod(r+"/g", 0o4644) }},
		{"owner", "g", func(r string) error { return os.Lchown(r+"/g", 0, 70000) }},
		{"time by a nanosecond", "g", func(r string) error { return touch(r + "/g") }},
		{"a symlink's time", "s", func(r string) error { return touch(r + "/s") }},
		{"xattr", "g", func(r string) error { return unix.Lsetxattr(r+"/g", "trusted.x", []byte("v"), 0) }},
		{"removed", "s", func(r string) error { return os.Remove(r + "/s") }},
		{"added", "new", func(r string) error { return os.WriteFile(r+"/new", nil, 0o644) }},
		{"link broken up", "hard", func(r string) error {
			if err := os.Remove(r + "/hard"); err != nil {
				return err
			}
			return os.WriteFile(r+"/hard", []byte("text"), 0o644)
		}},
		{"link target", "s", func(r string) error {
			if err := os.Remove(r + "/s"); err != nil {
				return err
			}
			return os.Symlink("d/g", r+"/s")
		}},
		{"device number", "dev", func(r string) error {
			if err := os.Remove(r + "/dev"); err != nil {
				return err
			}
			return unix.Mknod(r+"/dev", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5)))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := build(t)
			must(t, tt.change(root))
			d := Diff(want, describe(t, root), nil)
			if !strings.Contains(d, `"`+tt.path+`"`) {
				t.Errorf("difference at %s not found, but:\n%s", tt.path, d)
			}
		})
	}
	t.Run("undated", func(t *testing.T) {
		root := build(t)
		must(t, touch(root+"/d"))
		if d := Diff(want, describe(t, root), map[string]bool{"d": true}); d != "" {
			t.Errorf("differs in a time that is not compared:\n%s", d)
		}
		must(t, os.Chmod(root+"/d", 0o700))
		if d := Diff(want, describe(t, root), map[string]bool{"d": true}); d == "" {
			t.Error("the mode of an undated directory is not compared")
		}
	})
}
