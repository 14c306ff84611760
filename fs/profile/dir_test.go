package profile

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestDir(t *testing.T) {
	root := t.TempDir()
	d := NewDir(filepath.Join(root, "not there yet"))
	if list, err := d.List(); err != nil || len(list) != 0 {
		t.Errorf("List: %v, %v", list, err)
	}
	if _, err := d.Load(manifest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load: %v", err)
	}
	if err := d.Remove(manifest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Remove: %v", err)
	}
	first, second := run(at(0, layerA, 0, 1)), run(at(0, layerA, 0, 1), at(ms, layerB, 0, 1))
	for i, c := range []struct{ save, want *Profile }{
		{run(), run()},
		{first, first},
		{run(), first},
		{second, runs(2, times(2, at(0, layerA, 0, 1)), at(ms, layerB, 0, 1))},
	} {
		got, err := d.Save(c.save)
		if err != nil {
			t.Fatal(err)
		}
		wantProfile(t, got, c.want)
		if i == 0 {
			continue // without ranges nothing is kept
		}
		if got, err = d.Load(manifest); err != nil {
			t.Fatal(err)
		}
		wantProfile(t, got, c.want)
	}
	if err := d.Replace(first); err != nil {
		t.Fatal(err)
	}
	got, err := d.Load(manifest)
	if err != nil {
		t.Fatal(err)
	}
	wantProfile(t, got, first)
	list, err := d.List()
	if err != nil || len(list) != 1 || list[0].Manifest != manifest ||
		time.Since(list[0].Saved) > time.Minute {
		t.Errorf("List: %+v, %v", list, err)
	}
	if err := d.Remove(manifest); err != nil {
		t.Error(err)
	}
	if list, err := d.List(); err != nil || len(list) != 0 {
		t.Errorf("List: %v, %v", list, err)
	}
}

func TestDirDamage(t *testing.T) {
	d := NewDir(t.TempDir())
	good := run(at(0, layerA, 0, 1))
	if _, err := d.Save(good); err != nil {
		t.Fatal(err)
	}
	name, err := d.file(manifest)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	other := &Profile{Manifest: digest.FromString("other"), Runs: 1}
	foreign, err := other.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for kind, content := range map[string][]byte{
		"empty": nil, "cut": whole[:len(whole)/2], "another's": foreign, "huge": make([]byte,
			5<<20),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Load(manifest); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", kind, err)
		}
		got, err := d.Save(good)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		wantProfile(t, got, good)
	}
}

func TestDirNames(t *testing.T) {
	d := NewDir(t.TempDir())
	for _, m := range []digest.Digest{"", "sha256:../../etc/passwd", "sha256:12", "../x:y"} {
		if _, err := d.Load(m); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("Load %q: %v", m, err)
		}
		if err := d.Remove(m); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("Remove %q: %v", m, err)
		}
	}
	if _, err := d.Save(run(at(0, layerA, 0, 1))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x.profile", "sha256-12.profile", ".x.5.tmp", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(d.path, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := d.List(); err != nil || len(list) != 1 {
		t.Errorf("List: %v, %v", list, err)
	}
}

func TestDirExpires(t *testing.T) {
	d := NewDir(t.TempDir())
	var all []digest.Digest
	for i := range 5 {
		p := run(at(0, layerA, 0, 1))
		p.Manifest = digest.FromBytes([]byte{byte(i)})
		if _, err := d.Save(p); err != nil {
			t.Fatal(err)
		}
		name, err := d.file(p.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
		all = append(all, p.Manifest)
	}
	left, fresh := filepath.Join(d.path, ".x.1.tmp"), filepath.Join(d.path, ".x.2.tmp")
	for _, name := range []string{left, fresh} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * tempAge)
	if err := os.Chtimes(left, old, old); err != nil {
		t.Fatal(err)
	}
	if err := d.expireLocked(3); err != nil {
		t.Fatal(err)
	}
	list, err := d.List()
	if err != nil || len(list) != 3 || list[0].Manifest != all[4] || list[2].Manifest != all[2] {
		t.Errorf("List: %v, %v; want the last three of %v", list, err, all)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a crash has left: %v", err)
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Errorf("what another process writes: %v", err)
	}
}

func TestDirParallel(t *testing.T) {
	d := NewDir(t.TempDir())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := d.Save(run(at(0, layerA, int64(2*i), 1))); err != nil {
				t.Error(err)
			}
			if _, err := d.Load(manifest); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p, err := d.Load(manifest)
	if err != nil || p.Runs != 8 || len(p.Ranges) != 8 {
		t.Errorf("after eight runs: %v, %v", p, err)
	}
}
