package creds

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds on files that others write.
const maxConfig = 4 << 20 // bytes

// Docker Hub goes by its old address in config.json and in helpers.
const hubKey = "https://index.docker.io/v1/"

// DockerOptions says where Docker's configuration is.
type DockerOptions struct {
	// Paths are config.json or auth.json files, or directories that hold a config.json, asked in
	// this order. Empty: what logins write, see loginPaths. Files that do not exist have no
	// credentials.
	Paths []string
	// HelperTimeout bounds one run of a credential helper. 0: 10 s.
	HelperTimeout time.Duration
}

// Docker is a Keychain of Docker's config.json files, and of podman's auth.json, which is alike.
type Docker struct {
	timeout time.Duration

	mu    sync.Mutex
	files []file
}

// file is one config.json as last read.
type file struct {
	path  string
	stamp stamp
	conf  config
	err   error
}

// stamp changes when a file does.
type stamp struct {
	size int64
	time time.Time
}

// config is the part of config.json that is about credentials.
// https://github.com/docker/cli, cli/config/configfile
type config struct {
	Auths       map[string]entry  `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

type entry struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// NewDocker returns a keychain of Docker's configuration. It does no I/O.
func NewDocker(o DockerOptions) *Docker {
	d := &Docker{timeout: o.HelperTimeout}
	if d.timeout <= 0 {
		d.timeout = 10 * time.Second
	}
	paths := o.Paths
	if len(paths) == 0 {
		paths = loginPaths()
	}
	for _, p := range paths {
		d.files = append(d.files, file{path: p})
	}
	return d
}

// loginPaths returns where logins are, in podman's order: $REGISTRY_AUTH_FILE, the two places of
// auth.json, docker's configuration. Daemons without a home have root's.
// https://github.com/containers/image, docs/containers-auth.json.5.md
func loginPaths() (paths []string) {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	session := fmt.Sprintf("/run/containers/%d", os.Geteuid())
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		session = filepath.Join(dir, "containers")
	}
	if file := os.Getenv("REGISTRY_AUTH_FILE"); file != "" {
		paths = append(paths, file)
	}
	config := cmp.Or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config"))
	return append(paths, filepath.Join(session, "auth.json"),
		filepath.Join(config, "containers", "auth.json"),
		cmp.Or(os.Getenv("DOCKER_CONFIG"), filepath.Join(home, ".docker")))
}

// Credentials implements Keychain. In each file, a helper for the very host comes first, then the
// file's own entries, those for the repository before those for all of the host, then the helper
// for all (Docker leaves an empty entry for a host that the helper knows).
func (d *Docker) Credentials(ctx context.Context, host, repository string) ([]Credential, error) {
	var out []Credential
	var errs []error
	for _, f := range d.read() {
		found, err := f.conf.lookup(ctx, host, repository, d.timeout)
		if f.err != nil {
			err = f.err
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.path, err))
		}
		out = append(out, found...)
	}
	if len(out) > 0 {
		return out, nil
	}
	return nil, errors.Join(errs...)
}

// read returns the files, read again where they have changed. Helpers run without the lock.
func (d *Docker) read() []file {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.files {
		d.files[i].refresh()
	}
	return append([]file(nil), d.files...)
}

func (f *file) refresh() {
	path := f.path
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		path = filepath.Join(path, "config.json")
		info, err = os.Stat(path)
	}
	if err != nil {
		f.conf, f.stamp, f.err = config{}, stamp{}, nil
		if !errors.Is(err, fs.ErrNotExist) {
			f.err = err
		}
		return
	}
	now := stamp{info.Size(), info.ModTime()}
	if now == f.stamp && f.err == nil {
		return
	}
	f.conf, f.err = readConfig(path)
	f.stamp = now
}

func readConfig(path string) (config, error) {
	b, err := readBounded(path)
	if err != nil {
		return config{}, err
	}
	return parseConfig(b)
}

// readBounded reads a file of at most maxConfig bytes.
func readBounded(path string) ([]byte, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("more than %d bytes", maxConfig)
	}
	return b, err
}

func parseConfig(b []byte) (config, error) {
	var c config
	if len(strings.TrimSpace(string(b))) == 0 {
		return c, nil
	}
	if err := json.Unmarshal(b, &c); err != nil {
		// Not the error itself: it may quote the file.
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return config{}, fmt.Errorf("not JSON at byte %d", syntax.Offset)
		}
		return config{}, errors.New("not a Docker configuration")
	}
	return c, nil
}

func (c *config) lookup(
	ctx context.Context, host, repository string, timeout time.Duration,
) (out []Credential, err error) {
	place := at(host, repository)
	add := func(found Credential, failed error) {
		if found != (Credential{}) {
			out = append(out, found)
		}
		err = errors.Join(err, failed)
	}
	for _, k := range matching(c.CredHelpers, place) {
		if name := c.CredHelpers[k]; name != "" {
			add(ask(ctx, name, host, timeout))
		}
	}
	for _, k := range matching(c.Auths, place) {
		add(c.Auths[k].credentials())
	}
	if c.CredsStore != "" && len(out) == 0 {
		add(ask(ctx, c.CredsStore, host, timeout))
	}
	return out, err
}

// matching returns the keys that cover a place, the most specific first.
func matching[T any](m map[string]T, place string) (keys []string) {
	for k := range m {
		if matches(k, place) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, specific)
	return keys
}

func (e entry) credentials() (Credential, error) {
	user, secret := e.Username, e.Password
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			b, err = base64.RawStdEncoding.DecodeString(e.Auth)
		}
		if err != nil {
			return Credential{}, errors.New(`"auth" is not base64`)
		}
		var ok bool
		if user, secret, ok = strings.Cut(string(b), ":"); !ok {
			return Credential{}, errors.New(`"auth" is not user:password`)
		}
		secret = strings.TrimRight(secret, "\x00")
	}
	if e.IdentityToken != "" {
		return Credential{"", e.IdentityToken}, nil
	}
	return Credential{user, secret}, nil
}

var _ Keychain = (*Docker)(nil)
