package fs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestCleanUp: what a killed process has left of trees and of variants on their way goes; nothing
// else does.
func TestCleanUp(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	root := testDir(t)
	first := w.open(root, Auto)
	w.mountAll(first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(root, "layers/sha256", w.layers[0].Encoded())
	left := []string{filepath.Join(root, "trees-123"), filepath.Join(folder, ".index-4567.89.tmp")}
	kept := []string{filepath.Join(folder, "index-0123"), filepath.Join(root, "trees-new")}
	for _, name := range append(left, kept...) {
		if err := os.WriteFile(name, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now().Add(time.Hour) // of this process
	if err := os.Chtimes(kept[1], now, now); err != nil {
		t.Fatal(err)
	}
	w.open(root, Auto)
	eventually(t, "temporary files go", func() bool {
		for _, name := range left {
			if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
				return false
			}
		}
		return true
	})
	for _, name := range kept {
		if _, err := os.Lstat(name); err != nil {
			t.Error(err)
		}
	}
}
