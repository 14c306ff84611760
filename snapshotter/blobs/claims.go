package blobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

const (
	maxSources   = 8       // of one blob that are remembered
	maxClaimFile = 1 << 16 // bytes
)

// claim is what is known of a blob that is not there.
type claim struct {
	Sources []source  `json:"sources"` // at least one; the latest last
	Since   time.Time `json:"since"`
}

// source is a reference that has the blob, and the size that its manifest says.
type source struct {
	Ref  string `json:"ref"`
	Size int64  `json:"size"` // bytes
}

// size is the one that was said first. Another is said only by a manifest that is wrong, or of an
// attacker: see Store.Claim.
func (c claim) size() int64 { return c.Sources[0].Size }

func (c claim) info(d digest.Digest) content.Info {
	return content.Info{Digest: d, Size: c.size(), CreatedAt: c.Since, UpdatedAt: c.Since}
}

// with adds a source. The first one stays, because it has said the size.
func (c claim) with(from source) claim {
	sources := slices.Clone(c.Sources)
	if len(sources) == 0 || sources[0] != from {
		sources = append(slices.DeleteFunc(sources, func(s source) bool { return s == from }), from)
	}
	if len(sources) > maxSources {
		sources = slices.Delete(sources, 1, 2)
	}
	return claim{sources, c.Since}
}

// claims are kept in a folder, a file for each blob: DIR/ALGORITHM/HEX.
type claims struct {
	dir   string
	write func(path string, content []byte) error

	mu    sync.Mutex
	all   map[digest.Digest]claim
	files map[digest.Digest]bool // those that are in a file
}

// loadClaims reads the folder. What cannot be read is left out: its image has to be pulled again.
func loadClaims(
	dir string, write func(path string, content []byte) error, log *slog.Logger,
) *claims {
	c := &claims{dir: dir, write: write, all: map[digest.Digest]claim{},
		files: map[digest.Digest]bool{}}
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		log.Error("blobs that served layers stand for are not known", "dir", dir, "err", err)
	}
	for _, path := range paths {
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(path))),
			filepath.Base(path))
		now, err := readClaim(path)
		if err = errors.Join(err, d.Validate()); err != nil {
			log.Error("a blob that a served layer stands for is not known any more: where it is "+
				"missed, remove its image and pull it again", "file", path, "err", err)
			continue
		}
		c.all[d], c.files[d] = now, true
	}
	return c
}

func readClaim(path string) (c claim, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return c, err
	}
	if info.Size() > maxClaimFile {
		return c, fmt.Errorf("%d bytes are more than a claim has", info.Size())
	}
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err == nil && (len(c.Sources) == 0 || c.size() < 0) {
		err = errors.New("no claim")
	}
	return c, err
}

// Claimed returns the blobs that a Store has claimed that is not open.
func Claimed(dir string, log *slog.Logger) (all []digest.Digest) {
	for d := range loadClaims(dir, nil, log).all {
		all = append(all, d)
	}
	return all
}

func (c *claims) path(d digest.Digest) string {
	return filepath.Join(c.dir, d.Algorithm().String(), d.Encoded())
}

func (c *claims) get(d digest.Digest) (claim, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, ok := c.all[d]
	return now, ok
}

// note makes a claim in memory, until it is kept or removed. Where there is one already that says
// another size, it returns false.
func (c *claims) note(d digest.Digest, from source) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, ok := c.all[d]
	if !ok {
		now.Since = time.Now().UTC()
	} else if now.size() != from.Size {
		return false
	}
	c.all[d] = now.with(from)
	return true
}

// add adds a source to a claim, and returns it.
func (c *claims) add(d digest.Digest, from source) claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, ok := c.all[d]
	if !ok {
		now.Since = time.Now().UTC()
	}
	if next := now.with(from); !slices.Equal(next.Sources, now.Sources) {
		now = next
		c.all[d], c.files[d] = now, false
	}
	return now
}

// keep writes a claim into its file. A claim that is gone is none: ok is false.
func (c *claims) keep(d digest.Digest) (ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, ok := c.all[d]
	if !ok || c.files[d] {
		return ok, nil
	}
	b, err := json.Marshal(now)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(c.path(d)), 0o700)
	}
	if err == nil {
		err = c.write(c.path(d), b)
	}
	c.files[d] = err == nil
	return ok, err
}

// remove reports whether there was a claim.
func (c *claims) remove(d digest.Digest) (ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok = c.all[d]; !ok {
		return false, nil
	}
	if err = os.Remove(c.path(d)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return true, err
	}
	delete(c.all, d)
	delete(c.files, d)
	return true, nil
}

// list returns the claims that are in files: containerd is told of no other.
func (c *claims) list() map[digest.Digest]claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := map[digest.Digest]claim{}
	for d, now := range c.all {
		if c.files[d] {
			kept[d] = now
		}
	}
	return kept
}
