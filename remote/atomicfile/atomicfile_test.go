package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	check := func(want string, mode os.FileMode) {
		t.Helper()
		b, err := os.ReadFile(path)
		st, statErr := os.Stat(path)
		if err != nil || statErr != nil || string(b) != want || st.Mode() != mode {
			t.Errorf("%q of mode %v, %v, %v; want %q of %v", b, st.Mode(), err, statErr, want, mode)
		}
		left, err := filepath.Glob(filepath.Join(dir, Leftovers))
		if err != nil || len(left) > 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
	}
	if err := ReplaceBytes(path, 0o600, []byte("a")); err != nil {
		t.Fatal(err)
	}
	check("a", 0o600)
	if err := ReplaceBytes(path, 0o644, []byte("b")); err != nil {
		t.Fatal(err)
	}
	check("b", 0o644)
	refused := errors.New("refused")
	err := Replace(path, 0o600, func(w io.Writer) error {
		left, err := filepath.Glob(filepath.Join(dir, Leftovers))
		if err != nil || len(left) != 1 {
			t.Errorf("while it is written: %v, %v", left, err)
		}
		_, err = io.WriteString(w, "c")
		return errors.Join(err, refused)
	})
	if !errors.Is(err, refused) {
		t.Errorf("got %v, want %v", err, refused)
	}
	check("b", 0o644)
	err = ReplaceBytes(filepath.Join(dir, "none", "file"), 0o600, nil)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a folder: %v", err)
	}
}
