package sametree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/fs/mountinfo"
	"github.com/mica-snapshotter/mica/index/tartree/tartreetest"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestOddImages compares images whose layers depend on each other in ways of their own.
func TestOddImages(t *testing.T) {
	file := func(name string) images.Entry { return images.File(name, 0o644, []byte(name+"\n")) }
	dir := func(name string, mode int64, xattr string) images.Entry {
		e := images.Dir(name)
		e.Header.Mode, e.Header.Uid, e.Header.Gid = mode, 7, 8
		if xattr != "" {
			e.Header.PAXRecords = map[string]string{"SCHILY.xattr.user.x": xattr}
		}
		return e
	}
	link := func(name, target string) images.Entry {
		return images.Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target,
			Mode: 0o777}}
	}
	layer := func(entries ...images.Entry) []byte {
		b, err := images.Tar(entries...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var (
		empty = make([]byte, 1024) // BuildKit's empty layer
		base  = layer(dir("opt", 0o711, ""), dir("tmp", 0o1777, "y"), dir("var", 0o2775, ""),
			file("opt/base"), file("tmp/base"))
		data  = layer(dir("d", 0o755, ""), file("d/data"), file("opt/implied"))
		hides = layer(dir("e", 0o700, ""), file("e/.wh.none"), file("e/x"), file("opt/.wh.base"))
		other = layer(file("other"), file("opt/other"))
	)
	deep := [][]byte{base}
	for i := range 130 {
		deep = append(deep, layer(file(fmt.Sprintf("opt/deep/f%d", i))))
	}
	var subjects []random
	for name, tars := range map[string][][]byte{
		"empty-twice":       {base, empty, other, empty},
		"empty-only":        {empty, empty, empty},
		"adjacent":          {base, data, data},
		"a-b-a":             {base, data, other, data},
		"lowest-twice":      {hides, hides},
		"whiteouts-twice":   {base, hides, other, hides},
		"hidden-in-between": {base, data, layer(file(".wh.d"), file("opt/.wh.implied")), data},
		"implied-differs":   {base, data, layer(dir("opt", 0o750, "")), data, data},
		"implied-again": {base, layer(file("opt/a"), file("tmp/a")), layer(file("opt/b"),
			file("tmp/b")), layer(file("opt/c"), file("tmp/sub/c"))},
		"implied-over-gone": {base, layer(file(".wh.opt")), layer(file("opt/a")), layer(file("opt/b"))},
		"implied-over-file": {base, layer(file("opt")), layer(file("opt/a")), layer(file("opt/b"))},
		"implied-under": {base, layer(file("opt/.wh..wh..opq")), layer(file("opt/a")),
			layer(file("opt/b"))},
		"implied-by-link": {base, layer(link("l", "opt"), link("m/n", "/tmp")), layer(file("l/a"),
			file("m/n/b")), layer(file("l/c"))},
		"implied-group": {base, layer(file("var/new/a")), layer(file("var/new/more/b"))},
		"lowest-whiteouts": {layer(file("a/.wh.x"), file(".wh.y"), dir("b", 0o755, ""),
			file("b/.wh..wh..opq"), file("b/f"), file("y")), other},
		"lowest-opaque": {layer(file("b/sub/f"), dir("b", 0o755, ""), file("b/.wh..wh..opq"),
			file("b/c/g")), other},
		"lowest-and-not": {hides, base, hides},
		"whiteouts-of-no": {base, layer(file("new/.wh.none"), file("new/f"), file(".wh.none"),
			file("new/.wh..wh..opq"))},
		"deep":               deep,
		"one-layer":          {hides},
		"whiteout-is-lowest": {layer(file("a"), file(".wh.a"), file("b")), other},
	} {
		subjects = append(subjects, random{name: name, tars: tars})
	}
	accepted := compareRandom(t, fixture.Referrers(t), subjects)
	t.Run("mica mount", func(t *testing.T) {
		mounted := 0
		for _, s := range accepted {
			switch s.name {
			case "empty-twice", "whiteouts-twice", "implied-again", "lowest-whiteouts":
				s.compareMount(t)
				mounted++
			}
		}
		if mounted != 4 {
			t.Errorf("%d images were mounted", mounted)
		}
	})
}

// compareMount compares what `mica mount` shows of the image.
func (s *random) compareMount(t *testing.T) {
	ctx := fixture.Context(t)
	bin, err := node.Binary("mica")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p, err := node.StartProcess(ctx, "mica mount", filepath.Join(t.TempDir(), "log"), os.Environ(),
		[]string{bin, "mount", s.ref, dir},
		func(context.Context) error {
			_, ok, err := mountinfo.RootAt(dir)
			if err == nil && !ok {
				err = errors.New("nothing is mounted")
			}
			return err
		})
	if err != nil {
		t.Errorf("%s: %v", s.name, err)
		return
	}
	got, err := tartreetest.List(dir)
	if err = errors.Join(err, p.Stop()); err != nil {
		t.Errorf("%s: %v", s.name, err)
	}
	if diff := tartreetest.Diff(s.whole, got); len(diff) > 0 {
		t.Errorf("%s by mica mount: %d differences from overlayfs:\n%s", s.name, len(diff),
			strings.Join(diff, "\n"))
	}
}
