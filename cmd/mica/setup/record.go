package setup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// change is a file that is written, or removed. nil: no file.
type change struct {
	Path   string `json:"path"`
	Before []byte `json:"before"`
	After  []byte `json:"after"`
}

const recordName = "mica-setup.json"

// ErrNothing is returned by Undo where nothing is set up.
var ErrNothing = errors.New("nothing to undo")

// ErrTarget is wrapped by errors about a target that is none of Targets.
var ErrTarget = errors.New("cannot be set up")

// recordPath is where mica setup keeps what it has changed for a containerd.
func recordPath(config string) string {
	return filepath.Join(filepath.Dir(config), recordName)
}

// changes are the files that are not on disk as they shall be, by path.
func changes(f conf.Files) ([]change, error) {
	var all []change
	for _, path := range slices.Sorted(maps.Keys(f)) {
		before, err := conf.Files(nil).Read(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if c := (change{path, before, f[path]}); !c.same(before, c.After) {
			all = append(all, c)
		}
	}
	return all, nil
}

// same says whether two contents are one, where no file is not an empty file.
func (change) same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// write puts a file on disk as it is after the change.
func (c change) write() error {
	if c.After == nil {
		return os.Remove(c.Path)
	}
	if real, err := filepath.EvalSymlinks(c.Path); err == nil {
		c.Path = real
	}
	mode := os.FileMode(0o644)
	if st, err := os.Stat(c.Path); err == nil {
		mode = st.Mode().Perm()
	} else if filepath.Base(c.Path) == recordName { // what it keeps may be secret
		mode = 0o600
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return err
	}
	return atomicfile.ReplaceBytes(c.Path, mode, c.After)
}

// apply records changes and writes them. What it returns takes these changes back.
func apply(record string, changes []change) (undo func() error, err error) {
	old, err := recorded(record)
	if err != nil {
		return nil, err
	}
	var all []change
	for _, c := range old { // of a file that changes again, the oldest content counts
		if i := slices.IndexFunc(changes, func(n change) bool { return n.Path == c.Path }); i >= 0 {
			c.After = changes[i].After
		}
		all = append(all, c)
	}
	for _, c := range changes {
		if !slices.ContainsFunc(old, func(o change) bool { return o.Path == c.Path }) {
			all = append(all, c)
		}
	}
	before, err := conf.Files(nil).Read(record)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	after, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, err
	}
	changes = slices.Insert(slices.Clone(changes), 0, change{record, before, append(after, '\n')})
	var undos []change
	undo = func() error {
		var errs []error
		for _, c := range slices.Backward(undos) {
			errs = append(errs, c.write())
		}
		return errors.Join(errs...)
	}
	for _, c := range changes {
		if err := c.write(); err != nil {
			return nil, errors.Join(err, undo())
		}
		undos = append(undos, change{c.Path, c.After, c.Before})
	}
	return undo, nil
}

// recorded are the changes of earlier runs.
func recorded(record string) ([]change, error) {
	b, err := os.ReadFile(record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []change
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("parse %s: %w", record, err)
	}
	return all, nil
}

// undone are the changes that take back those of a record. Files that have been written anew
// without a line of mica setup's stay as they are. Where such a line is left in a file that has
// changed otherwise, nothing is taken back.
func undone(record string) ([]change, error) {
	all, err := recorded(record)
	if err != nil {
		return nil, err
	}
	if all == nil {
		return nil, fmt.Errorf("%w: mica setup has changed nothing here (there is no %s)",
			ErrNothing, record)
	}
	var undo []change
	var errs []error
	for _, c := range slices.Backward(all) {
		now, err := conf.Files(nil).Read(c.Path)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case c.same(now, c.After):
			undo = append(undo, change{c.Path, now, c.Before})
		case c.left(now):
			remedy := "move it away"
			if c.Before != nil {
				old := c.Path + ".before-mica"
				errs = append(errs, os.WriteFile(old, c.Before, 0o600))
				remedy = "take out of it what mica setup added (" + old + " is what it was)"
			}
			errs = append(errs, fmt.Errorf("%s was changed after mica setup: %s, then say --undo "+
				"again", c.Path, remedy))
		}
	}
	return undo, errors.Join(errs...)
}

// left says whether a content has a line that the change has added.
func (c change) left(now []byte) bool {
	lines := func(b []byte) []string { return strings.Split(string(b), "\n") }
	before, here := lines(c.Before), lines(now)
	for _, l := range lines(c.After) {
		if strings.TrimSpace(l) != "" && !slices.Contains(before, l) && slices.Contains(here, l) {
			return true
		}
	}
	return false
}

// around is how many unchanged lines a difference shows on each side.
const around = 3

// diff is the change as a unified difference of one hunk.
func (c change) diff() string {
	if c.After == nil {
		return c.Path + " is removed\n"
	}
	a := slices.Collect(strings.Lines(string(c.Before)))
	b := slices.Collect(strings.Lines(string(c.After)))
	first := 0
	for first < min(len(a), len(b)) && a[first] == b[first] {
		first++
	}
	last := 0 // unchanged lines at the end
	for last < min(len(a), len(b))-first && a[len(a)-1-last] == b[len(b)-1-last] {
		last++
	}
	from, after := max(first-around, 0), max(last-around, 0)
	old := c.Path
	if c.Before == nil {
		old = "/dev/null"
	}
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n@@ -%d,%d +%d,%d @@\n", old, c.Path,
		min(from+1, len(a)), len(a)-after-from, from+1, len(b)-after-from)
	print := func(sign string, lines []string) {
		for _, l := range lines {
			fmt.Fprintf(&out, "%s%s\n", sign, strings.TrimSuffix(l, "\n"))
		}
	}
	print(" ", a[from:first])
	print("-", a[first:len(a)-last])
	print("+", b[first:len(b)-last])
	print(" ", a[len(a)-last:len(a)-after])
	return out.String()
}
