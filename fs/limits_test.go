package fs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/pull"
)

// TestLimits: what is over a limit is left to containerd, and the reason says what to do.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		indexed bool
		limits  pull.Limits
		ok      bool
		says    string
	}{
		"layer with an index": {true, pull.Limits{LayerSize: 1 << 20}, false,
			"Limits.LayerSize"},
		"layer without one": {false, pull.Limits{LayerSize: 1 << 20}, false,
			"Options.DeviceSize"},
		"files":                       {false, pull.Limits{Entries: 2}, false, "Limits.Entries"},
		"index, which is then unused": {true, pull.Limits{IndexSize: 1000}, true, ""},
		"none, with an index":         {true, pull.Limits{}, true, ""},
		"as many as it has": {false, pull.Limits{Entries: 4, LayerSize: 4 << 20}, true,
			""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			if c.indexed {
				w.index(nil)
			}
			table := w.openWith(Options{Root: testDir(t), Mode: Auto, Limits: c.limits,
				Fetch: fetch.Options{Fill: fetch.None}})
			_, err := table.Mount(t.Context(), w.layer(0), nil)
			if c.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), c.says) ||
				!strings.Contains(err.Error(), "section [limits] of micad's configuration") {
				t.Errorf("error %v, want one with %s", err, c.says)
			}
		})
	}
}

// TestFolderModes: nobody but root gets to the mounts and what they are made of.
func TestFolderModes(t *testing.T) {
	root := testDir(t)
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	w.mountAll(w.open(root, Auto))
	for _, name := range []string{mountsName, devicesName, "layers", "layers/sha256"} {
		st, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
}
