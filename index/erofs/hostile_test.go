package erofs_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// TestHostileTrees checks trees that are legal but for their size or their names.
func TestHostileTrees(t *testing.T) {
	for name, l := range map[string]*Layer{
		"deep": LayerOf(Dir(strings.Repeat("d/", 3000))),
		"long": LayerOf(Dir(strings.Repeat(strings.Repeat("l", 200)+"/", 30))),
	} {
		x := l.Open(t)
		if err := index.Check(t.Context(), x); !errors.Is(err, index.ErrCorrupt) ||
			!strings.Contains(err.Error(), "path") {
			t.Errorf("%s: error %v", name, err)
		}
		deepest := func() error {
			nids, err := x.Implicit()
			if err != nil {
				return err
			}
			return x.Tree().Paths(nids, func(uint64, string) error { return nil })
		}
		if err := deepest(); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%s: paths: %v", name, err)
		}
	}
	for _, name := range []string{"a/b", "/", "a\x00b", "", "..", ".", strings.Repeat("n", 256)} {
		l := LayerOf(Dir("d"))
		l.Draft.Root.Children["d"].Children[name] = &erofs.Node{Mode: unix.S_IFREG}
		if _, err := index.Write(io.Discard, &l.Draft); err == nil {
			t.Errorf("a file of name %q is written", name)
		}
	}
	if err := index.Check(t.Context(),
		LayerOf(Dir(strings.Repeat("d/", 2047))).Open(t)); err != nil {
		t.Errorf("the deepest path: %v", err)
	}
}

// TestManyImplicit finds the paths of many directories of one directory in time that grows with
// their number, not with its square.
func TestManyImplicit(t *testing.T) {
	const n = 50_000
	x := LayerOf(Entries(n, func(i int) Entry { return Implicit(fmt.Sprint("d/", i)) })).Open(t)
	nids, err := x.Implicit()
	if err != nil {
		t.Fatal(err)
	}
	start, found := time.Now(), 0
	if err := x.Tree().Paths(nids, func(uint64, string) error { found++; return nil }); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 5*time.Second || found != n+1 {
		t.Errorf("%d paths in %v", found, d)
	}
}
