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
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	maxSources = 8 // of one blob that are remembered
	lockWait   = 10 * time.Second
)

var claimsBucket = []byte("claims")

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

// claims are kept in a file, by the blobs' digests.
type claims struct {
	db *bolt.DB

	mu    sync.Mutex
	noted map[digest.Digest]claim // those that are on their way into the file
}

// openClaims opens the file at path. One that is damaged is put aside: its blobs cannot be read until
// their images are pulled again.
func openClaims(path string, log *slog.Logger) (*claims, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	db, err := openDB(path)
	// an Errno is not about what stands in the file
	if err != nil && !errors.As(err, new(syscall.Errno)) && !errors.Is(err, bolterrors.ErrTimeout) {
		log.Error("the list of blobs that served layers stand for is damaged: pull the images anew "+
			"whose blobs are missed", "path", path, "err", err)
		if err := os.Rename(path, path+".damaged"); err != nil {
			return nil, fmt.Errorf("put %s aside: %w", path, err)
		}
		db, err = openDB(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &claims{db: db, noted: map[digest.Digest]claim{}}, nil
}

// Claimed returns the blobs that a Store has claimed which is not open: none where there is no file.
func Claimed(path string, log *slog.Logger) (all []digest.Digest, err error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	c, err := openClaims(path, log)
	if err != nil {
		return nil, err
	}
	err = c.each(func(d digest.Digest, _ claim) error {
		all = append(all, d)
		return nil
	})
	return all, errors.Join(err, c.Close())
}

func openDB(path string) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(claimsBucket)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func (c *claims) Close() error { return c.db.Close() }

// note makes a claim in memory, until it is added or removed. Where there is one already that says
// another size, it returns false.
func (c *claims) note(d digest.Digest, from source) bool {
	if now, ok := c.get(d); ok {
		return now.size() == from.Size
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noted[d] = claim{Sources: []source{from}, Since: time.Now().UTC()}
	return true
}

// forget drops what is in memory alone.
func (c *claims) forget(d digest.Digest) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok = c.noted[d]
	delete(c.noted, d)
	return ok
}

// add adds a source to a claim, and returns the claim.
func (c *claims) add(d digest.Digest, from source) (claim, error) {
	now, ok := c.kept(d)
	if ok && now.Sources[len(now.Sources)-1] == from {
		c.forget(d)
		return now, nil
	}
	err := c.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(claimsBucket)
		if now, ok = parse(b.Get([]byte(d))); !ok {
			now = claim{Since: time.Now().UTC()}
		}
		first := len(now.Sources) > 0 && now.Sources[0] == from
		if !first {
			now.Sources = append(
				slices.DeleteFunc(now.Sources, func(s source) bool { return s == from }), from)
		}
		if len(now.Sources) > maxSources { // the first has said the size
			now.Sources = slices.Delete(now.Sources, 1, 2)
		}
		value, err := json.Marshal(now)
		if err != nil {
			return err
		}
		return b.Put([]byte(d), value)
	})
	if err == nil {
		c.forget(d)
	}
	return now, err
}

func parse(value []byte) (c claim, ok bool) {
	return c, value != nil && json.Unmarshal(value, &c) == nil && len(c.Sources) > 0
}

// get returns a claim. One that cannot be read is none.
func (c *claims) get(d digest.Digest) (claim, bool) {
	c.mu.Lock()
	now, ok := c.noted[d]
	c.mu.Unlock()
	if ok {
		return now, true
	}
	return c.kept(d)
}

// kept is get from the file.
func (c *claims) kept(d digest.Digest) (found claim, ok bool) {
	err := c.db.View(func(tx *bolt.Tx) error {
		found, ok = parse(tx.Bucket(claimsBucket).Get([]byte(d)))
		return nil
	})
	return found, ok && err == nil
}

// remove reports whether there was a claim.
func (c *claims) remove(d digest.Digest) (ok bool, err error) {
	noted := c.forget(d)
	if _, ok = c.kept(d); !ok {
		return noted, nil
	}
	return true, c.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(claimsBucket).Delete([]byte(d))
	})
}

// each calls fn for every claim in the file: containerd is told of no other.
func (c *claims) each(fn func(digest.Digest, claim) error) error {
	return c.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(claimsBucket).ForEach(func(key, value []byte) error {
			if found, ok := parse(value); ok {
				return fn(digest.Digest(key), found)
			}
			return nil
		})
	})
}
