package creds

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxKept    = 256      // credentials that are kept; those longest not come again go first
	maxSecret  = 12 << 10 // bytes of one; all of them fit into maxConfig
	maxPerRepo = 4        // of these, for one repository
	// what came less than this ago stays, whether or not anything uses it
	keptAtUse = 24 * time.Hour
	keptAnew  = time.Hour // how often one that comes again is written again
)

// KeptOptions says where Kept keeps what it knows.
type KeptOptions struct {
	Dir string // its folder, made if need be, for root alone
	// file with the key; empty: systemd's credential KeyCredential if there is one, or else
	// Dir/key, made if need be
	Key    string
	Logger *slog.Logger // nil: slog.Default()
}

// Kept is a Keychain of the credentials that pulls came with. They are for the repository that was
// pulled and for nothing else, and only for the registry's own host, or the one that they name.
// They outlive a restart and a reboot in one file, sealed.
type Kept struct {
	path string
	key  *sealer
	log  *slog.Logger

	mu   sync.Mutex
	list []kept // the latest last
}

// kept is one of them. The JSON is the file's content.
type kept struct {
	Repository string    `json:"repository"` // as in image references
	Server     string    `json:"server,omitempty"`
	User       string    `json:"user,omitempty"`
	Secret     string    `json:"secret"`
	Came       time.Time `json:"came"`
}

func (k *kept) credential() Credential { return Credential{k.User, k.Secret} }

func (k *kept) is(repository, server string, c Credential) bool {
	return k.Repository == repository && k.Server == server && k.credential() == c
}

// OpenKept reads what is kept. What cannot be read, or was sealed with another key, is lost: it is
// logged, and no error, because the next pull brings it again.
func OpenKept(o KeptOptions) (*Kept, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	key, err := openKey(o.Dir, o.Key)
	if err != nil {
		return nil, fmt.Errorf("keep credentials: %w", err)
	}
	k := &Kept{path: filepath.Join(o.Dir, "kept"), key: key, log: o.Logger}
	b, err := k.key.read(k.path)
	if err == nil && b != nil {
		err = json.Unmarshal(b, &k.list)
	}
	if err != nil {
		k.list = nil
		k.log.Warn("credentials of earlier pulls are lost; they come again with the next pulls",
			"err", err)
	}
	return k, nil
}

// Credentials implements Keychain.
func (k *Kept) Credentials(_ context.Context, host, repository string) ([]Credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Credential
	for _, e := range slices.Backward(k.list) {
		if e.Repository == repository && e.serves(host) {
			out = append(out, e.credential())
		}
	}
	return out, nil
}

// serves tells whether a host may be shown the credential. A mirror may not, unless it is named.
func (k *kept) serves(host string) bool {
	registry, _, _ := strings.Cut(k.Repository, "/")
	if k.Server != "" {
		registry = k.Server
	}
	named, _, _ := strings.Cut(canonical(registry), "/")
	return named == canonical(host)
}

// Keep keeps a credential that a pull of the repository came with. server is the host that it is
// for, empty for the registry's own. added: it was not kept yet. With an error it is kept until a
// restart.
func (k *Kept) Keep(repository, server string, c Credential) (added bool, err error) {
	switch {
	case c == (Credential{}):
		return false, nil
	case len(repository)+len(server)+len(c.User)+len(c.Secret) > maxSecret:
		return false, fmt.Errorf("keep credentials for %.100s: more than %d bytes", repository,
			maxSecret)
	}
	now := time.Now()
	e := kept{Repository: repository, Server: server, User: c.User, Secret: c.Secret, Came: now}
	k.mu.Lock()
	defer k.mu.Unlock()
	added, write := true, true
	k.list = slices.DeleteFunc(k.list, func(old kept) bool {
		if !old.is(repository, server, c) {
			return false
		}
		added = false
		if now.Sub(old.Came) < keptAnew {
			write, e.Came = false, old.Came
		}
		return true
	})
	k.list = append(k.list, e)
	n := 0
	for i := len(k.list) - 1; i >= 0; i-- {
		if k.list[i].Repository != repository {
			continue
		}
		if n++; n > maxPerRepo {
			k.list = slices.Delete(k.list, i, i+1)
		}
	}
	if len(k.list) > maxKept {
		k.list = slices.Delete(k.list, 0, len(k.list)-maxKept)
	}
	if !write {
		return added, nil
	}
	return added, k.writeLocked()
}

// Drop forgets a credential that Keep was given.
func (k *Kept) Drop(repository, server string, c Credential) error {
	return k.remove(func(e kept) bool { return e.is(repository, server, c) })
}

// Retain forgets those for repositories that nothing uses any more, but not what came just now.
func (k *Kept) Retain(used func(repository string) bool) error {
	now := time.Now()
	return k.remove(func(e kept) bool { return now.Sub(e.Came) > keptAtUse && !used(e.Repository) })
}

func (k *Kept) remove(which func(kept) bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.list)
	if k.list = slices.DeleteFunc(k.list, which); len(k.list) == n {
		return nil
	}
	return k.writeLocked()
}

// writeLocked replaces the file. Some milliseconds under the lock are no matter: it happens once a
// pull.
func (k *Kept) writeLocked() error {
	b, err := json.Marshal(k.list)
	if err != nil {
		return err
	}
	if err := k.key.write(k.path, b); err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	return nil
}

var _ Keychain = (*Kept)(nil)
