package fs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/fs/fetch"
)

// loops returns the files below root that loop devices are attached to.
func loops(t *testing.T, root string) (files []string) {
	t.Helper()
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		b, _ := os.ReadFile(name) // it may have been detached meanwhile
		if strings.HasPrefix(string(b), root+"/") {
			files = append(files, strings.TrimSpace(string(b)))
		}
	}
	return files
}

// TestLoopDevices: where the kernel mounts no files, a layer has the two loop devices of one mount,
// lazy or complete, and none when it has gone.
func TestLoopDevices(t *testing.T) {
	var blobs [][]byte
	var lines [][]string
	for seed := range uint64(3) {
		b, l := manyFiles(t, 30+seed, 4, 128<<10)
		blobs, lines = append(blobs, b), append(lines, l)
	}
	w := newWorld(t, blobs...)
	w.index(nil)
	root := testDir(t)
	open := func() *Table {
		return w.openWith(Options{
			Root: root, Mode: Auto, DirectIO: true, Fetch: fetch.Options{Fill: fetch.None},
		})
	}
	table := open()
	count := func(what string, want int) {
		t.Helper()
		eventually(t, what, func() bool { return len(loops(t, root)) == want })
	}
	dirs := w.mountAll(table)
	count("three lazy layers have six loop devices", 6)
	used := hold(t, filepath.Join(dirs[0], "f30-001"))
	want := sum(noise(30001, 128<<10))
	for i, dir := range dirs {
		mustList(t, dir, lines[i])
	}
	eventually(t, "all are local", func() bool {
		for _, s := range table.Status() {
			if s.Mode != Local {
				return false
			}
		}
		return true
	})
	count("the lazy mount that is in use has two more", 8)
	if got := used.read(t); got != want {
		t.Errorf("who used the lazy layer reads %s, want %s", got, want)
	}
	used.end()
	count("three complete layers have six", 6)
	for i, dir := range dirs {
		mustList(t, dir, lines[i])
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	count("and after a stop", 6) // they need no daemon
	table = open()
	w.mountAll(table)
	count("and after another start", 6)
	for _, d := range w.layers {
		if err := table.Remove(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	count("none is left", 0)

	w.mountAll(table)
	count("lazy again", 6)
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	count("a stop without a keeper leaves none of lazy layers", 0)
}
