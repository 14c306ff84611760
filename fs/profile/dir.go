package profile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

const (
	dirName = "profiles"
	suffix  = ".profile"
	tempAge = time.Hour // of a temporary that a crash has left
)

// Bounds of what is kept.
const (
	// MaxRuns is how many starts a kept or published profile counts at most; see Update.
	MaxRuns = 32
	// MaxRanges is how many ranges a kept or published profile has at most; those that are read
	// last are left out. They take about 300 KiB.
	MaxRanges = 1 << 16
	// MaxProfiles is how many profiles are kept. The one that was saved the longest ago gives way.
	MaxProfiles = 4096
)

// Dir is the profiles of this node: files ROOT/profiles/ALGORITHM-HEX.profile, named by the
// manifest's digest, in the binary format. A file is replaced as a whole, so that a reader, also in
// another process, finds the old one or the new one. Two processes that save the same profile at
// the same moment may lose one of the two runs.
type Dir struct {
	path string
	mu   sync.Mutex // held by whoever changes files
}

// NewDir returns the profiles below a root folder, which need not exist yet.
func NewDir(root string) *Dir { return &Dir{path: filepath.Join(root, dirName)} }

// Entry is a profile of a Dir that was not read yet.
type Entry struct {
	Manifest digest.Digest
	Saved    time.Time // when it last was
}

func (d *Dir) file(manifest digest.Digest) (string, error) {
	if err := manifest.Validate(); err != nil {
		return "", fmt.Errorf("profile of manifest %q: %w", manifest, err)
	}
	return filepath.Join(d.path, manifest.Algorithm().String()+"-"+manifest.Encoded()+suffix), nil
}

// List returns the profiles that are there, those saved last first.
func (d *Dir) List() ([]Entry, error) {
	files, err := os.ReadDir(d.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list profiles: %w", err)
	}
	var out []Entry
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), suffix)
		algorithm, sum, named := strings.Cut(name, "-")
		m := digest.Digest(algorithm + ":" + sum)
		if !ok || !named || m.Validate() != nil {
			continue
		}
		st, err := f.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // removed just now
		}
		if err != nil {
			return nil, fmt.Errorf("list profiles: %w", err)
		}
		out = append(out, Entry{m, st.ModTime()})
	}
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(b.Saved.Compare(a.Saved),
			strings.Compare(string(a.Manifest), string(b.Manifest)))
	})
	return out, nil
}

// Load returns the profile of a manifest. The error wraps os.ErrNotExist where there is none, and
// ErrInvalid where the file is damaged.
func (d *Dir) Load(manifest digest.Digest) (*Profile, error) {
	name, err := d.file(manifest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("load profile: %w", err)
	}
	defer f.Close()
	var lim Limits
	b, err := io.ReadAll(io.LimitReader(f, int64(lim.withDefaults().Encoded)+1))
	if err != nil {
		return nil, fmt.Errorf("load profile: %w", err)
	}
	p, err := Decode(b, lim)
	if err != nil {
		return nil, fmt.Errorf("load profile %s: %w", name, err)
	}
	if p.Manifest != manifest {
		return nil, fmt.Errorf("load profile %s: %w", name,
			invalid("it is of manifest %s", p.Manifest))
	}
	return p, nil
}

// Save merges a profile with the one that is there, as Update does, and returns the result. A
// damaged file is replaced. Profiles without ranges say nothing and are not saved.
func (d *Dir) Save(p *Profile) (*Profile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, err := d.Load(p.Manifest)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrInvalid) {
		return nil, err
	}
	if len(p.Ranges) == 0 {
		return cmp.Or(old, p), nil
	}
	merged := Update(old, p)
	return merged, d.writeLocked(merged)
}

// Replace puts a profile in the place of the one that is there.
func (d *Dir) Replace(p *Profile) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writeLocked(Update(nil, p))
}

func (d *Dir) writeLocked(p *Profile) error {
	name, err := d.file(p.Manifest)
	if err != nil {
		return err
	}
	b, err := p.Encode()
	if err != nil {
		return fmt.Errorf("save profile: %w", err)
	}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return fmt.Errorf("save profile: %w", err)
	}
	if err := atomicfile.ReplaceBytes(name, 0o600, b); err != nil {
		return fmt.Errorf("save profile: %w", err)
	}
	return d.expireLocked(MaxProfiles)
}

// expireLocked removes the profiles that were saved the longest ago, until limit are left, and
// temporaries that a crash has left.
func (d *Dir) expireLocked(limit int) error {
	list, err := d.List()
	if err != nil {
		return err
	}
	temps, err := filepath.Glob(filepath.Join(d.path, atomicfile.Leftovers))
	errs := []error{err}
	for _, name := range temps {
		if st, err := os.Stat(name); err == nil && time.Since(st.ModTime()) > tempAge {
			errs = append(errs, os.Remove(name))
		}
	}
	for _, e := range list[min(limit, len(list)):] {
		errs = append(errs, d.removeLocked(e.Manifest))
	}
	return errors.Join(errs...)
}

// Remove removes the profile of a manifest. The error wraps os.ErrNotExist where there is none.
func (d *Dir) Remove(manifest digest.Digest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.removeLocked(manifest)
}

func (d *Dir) removeLocked(manifest digest.Digest) error {
	name, err := d.file(manifest)
	if err != nil {
		return err
	}
	if err := os.Remove(name); err != nil {
		return fmt.Errorf("remove profile: %w", err)
	}
	return nil
}
