package creds

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func openKept(t *testing.T, dir, key string) *Kept {
	t.Helper()
	k, err := OpenKept(KeptOptions{Dir: dir, Key: key, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keep(t *testing.T, k *Kept, repository, server string, c Credential) {
	t.Helper()
	if _, err := k.Keep(repository, server, c); err != nil {
		t.Fatal(err)
	}
}

func mustFind(t *testing.T, k *Kept, host, repository string, want ...Credential) {
	t.Helper()
	if got, err := k.Credentials(t.Context(), host, repository); err != nil ||
		!slices.Equal(got, want) {
		t.Errorf("%s at %s: %q, %v, want %q", repository, host, got, err, want)
	}
}

// TestKept: what pulls came with is there after a restart, for their repository and registry alone,
// the latest first.
func TestKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "credentials")
	k := openKept(t, dir, "")
	a, b, c := Credential{"a", "one"}, Credential{"b", "two"}, Credential{"", "three"}
	keep(t, k, "docker.io/library/x", "", a)
	keep(t, k, "docker.io/library/x", "", b)
	keep(t, k, "reg.test:5000/y", "https://mirror.test/v2/", c)
	for range 2 {
		mustFind(t, k, "registry-1.docker.io", "docker.io/library/x", b, a)
		mustFind(t, k, "registry-1.docker.io", "docker.io/library/y")
		mustFind(t, k, "mirror.test", "docker.io/library/x")
		mustFind(t, k, "mirror.test", "reg.test:5000/y", c)
		mustFind(t, k, "reg.test:5000", "reg.test:5000/y")
		k = openKept(t, dir, "")
	}
	b2, err := os.ReadFile(filepath.Join(dir, "kept"))
	if err != nil || bytes.Contains(b2, []byte("one")) || bytes.Contains(b2, []byte("docker.io")) {
		t.Errorf("the file is %q, %v", b2, err)
	}
	for _, name := range []string{"kept", "key"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil ||
			info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
	if err := k.Drop("docker.io/library/x", "", b); err != nil {
		t.Fatal(err)
	}
	mustFind(t, openKept(t, dir, ""), "docker.io", "docker.io/library/x", a)
}

func TestKeptBounds(t *testing.T) {
	dir := t.TempDir()
	k := openKept(t, dir, "")
	for i := range maxPerRepo + 2 {
		if added, err := k.Keep("reg.test/x", "", Credential{"u", fmt.Sprint(i)}); !added ||
			err != nil {
			t.Errorf("%v, %v", added, err)
		}
	}
	if added, err := k.Keep("reg.test/x", "", Credential{"u", "3"}); added || err != nil {
		t.Errorf("again: %v, %v", added, err)
	}
	mustFind(t, k, "reg.test", "reg.test/x", Credential{"u", "3"}, Credential{"u", "5"},
		Credential{"u", "4"}, Credential{"u", "2"})
	if _, err := k.Keep("reg.test/x", "",
		Credential{"u", strings.Repeat("x", maxSecret)}); err == nil {
		t.Error("no bound")
	}
	for i := range maxKept + 10 {
		keep(t, k, fmt.Sprintf("reg.test/%d", i), "", Credential{"u", "p"})
	}
	k = openKept(t, dir, "")
	if n := len(k.list); n != maxKept {
		t.Errorf("%d are kept", n)
	}
}

// TestKeptDamage: a file that cannot be opened is no error, and what comes is kept again.
func TestKeptDamage(t *testing.T) {
	c := Credential{"u", "p"}
	for name, harm := range map[string]func(t *testing.T, dir string){
		"bit":       func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "kept"), 30) },
		"nonce":     func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "kept"), 9) },
		"version":   func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "kept"), 7) },
		"truncated": func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "kept"), 25) },
		"empty":     func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "kept"), 0) },
		"key":       func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "key"), 3) },
		"no key":    func(_ *testing.T, dir string) { os.Remove(filepath.Join(dir, "key")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			keep(t, openKept(t, dir, ""), "reg.test/x", "", c)
			harm(t, dir)
			k := openKept(t, dir, "")
			mustFind(t, k, "reg.test", "reg.test/x")
			keep(t, k, "reg.test/x", "", c)
			mustFind(t, openKept(t, dir, ""), "reg.test", "reg.test/x", c)
		})
	}
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

// TestKeys: whose key is used, and what is no key.
func TestKeys(t *testing.T) {
	c := Credential{"u", "p"}
	dir, given := t.TempDir(), t.TempDir()
	key := filepath.Join(given, KeyCredential)
	write(t, key, strings.Repeat("k", 40), 0o400)
	keep(t, openKept(t, dir, key), "reg.test/x", "", c)
	if _, err := os.Stat(filepath.Join(dir, "key")); err == nil {
		t.Error("a key lies beside what it seals, though another was named")
	}
	mustFind(t, openKept(t, dir, ""), "reg.test", "reg.test/x") // with another key
	t.Setenv("CREDENTIALS_DIRECTORY", given)
	keep(t, openKept(t, dir, ""), "reg.test/x", "", c)
	mustFind(t, openKept(t, dir, key), "reg.test", "reg.test/x", c)
	for text, mode := range map[string]os.FileMode{"short": 0o600,
		strings.Repeat("open", 10): 0o644} {
		bad := filepath.Join(t.TempDir(), "key")
		write(t, bad, text, mode)
		if _, err := OpenKept(KeptOptions{Dir: dir, Key: bad}); err == nil {
			t.Errorf("key %q of mode %o is taken", text, mode)
		}
	}
}

// TestRetain: what no image uses goes a day after it came.
func TestRetain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		k := openKept(t, dir, "")
		keep(t, k, "reg.test/x", "", Credential{"u", "p"})
		keep(t, k, "reg.test/y", "", Credential{"u", "p"})
		used := func(r string) bool { return r == "reg.test/x" }
		for _, want := range []int{2, 1} {
			if err := k.Retain(used); err != nil {
				t.Fatal(err)
			}
			if n := len(openKept(t, dir, "").list); n != want {
				t.Errorf("%d are kept, want %d", n, want)
			}
			time.Sleep(keptAtUse + time.Second)
		}
	})
}

func FuzzSeal(f *testing.F) {
	s, err := openKey(f.TempDir(), "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(sealMagic + "123456789012 and more than a tag has"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := s.open(b); err == nil {
			t.Errorf("%q is opened: %q", b, out)
		}
	})
}
