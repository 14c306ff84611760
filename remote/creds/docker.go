package creds

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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
	// Paths are config.json files, or directories that hold one, asked in this order. nil: $DOCKER_CONFIG, or else
	// ~/.docker, or else /root/.docker for daemons without a home. Files that do not exist have no credentials.
	Paths []string
	// HelperTimeout bounds one run of a credential helper. 0: 10 s.
	HelperTimeout time.Duration
}

// Docker is a Keychain of Docker's config.json files.
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
	if paths == nil {
		paths = []string{defaultDir()}
	}
	for _, p := range paths {
		d.files = append(d.files, file{path: p})
	}
	return d
}

func defaultDir() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".docker")
}

// Credentials implements Keychain. In each file, a helper for the very host comes first, then the file's own entries, then
// the helper for all (Docker leaves an empty entry for a host that the helper knows).
func (d *Docker) Credentials(ctx context.Context, host string) (user, secret string, err error) {
	var first error
	for _, f := range d.read() {
		user, secret, err := f.conf.lookup(ctx, host, d.timeout)
		if f.err != nil {
			err = f.err
		}
		if err == nil && (user != "" || secret != "") {
			return user, secret, nil
		}
		if err != nil && first == nil {
			first = fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return "", "", first
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
	r, err := os.Open(path)
	if err != nil {
		return config{}, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return config{}, err
	}
	if len(b) > maxConfig {
		return config{}, fmt.Errorf("more than %d bytes", maxConfig)
	}
	return parseConfig(b)
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

func (c *config) lookup(ctx context.Context, host string, timeout time.Duration) (user, secret string, err error) {
	if name, ok := find(c.CredHelpers, host); ok && name != "" {
		return ask(ctx, name, host, timeout)
	}
	if e, ok := find(c.Auths, host); ok {
		user, secret, err = e.credentials()
		if err != nil || user != "" || secret != "" {
			return user, secret, err
		}
	}
	if c.CredsStore != "" {
		return ask(ctx, c.CredsStore, host, timeout)
	}
	return "", "", nil
}

func (e entry) credentials() (user, secret string, err error) {
	user, secret = e.Username, e.Password
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			b, err = base64.RawStdEncoding.DecodeString(e.Auth)
		}
		if err != nil {
			return "", "", errors.New(`"auth" is not base64`)
		}
		var ok bool
		if user, secret, ok = strings.Cut(string(b), ":"); !ok {
			return "", "", errors.New(`"auth" is not user:password`)
		}
		secret = strings.TrimRight(secret, "\x00")
	}
	if e.IdentityToken != "" {
		return "", e.IdentityToken, nil
	}
	return user, secret, nil
}

// find returns the entry for a host: by its exact key, or else by one whose host is the same. Keys with a path below the host (as
// podman and Kubernetes allow for single repositories) are not for the whole host and do not count.
func find[T any](m map[string]T, host string) (T, bool) {
	host = canonical(host)
	for _, k := range []string{host, "https://" + host, "http://" + host} {
		if v, ok := m[k]; ok {
			return v, true
		}
	}
	for k, v := range m {
		if canonical(k) == host {
			return v, true
		}
	}
	var none T
	return none, false
}

// canonical strips scheme and API version from a key, and knows the names of Docker Hub.
func canonical(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	for _, v := range []string{"/v1", "/v2"} {
		key = strings.TrimSuffix(key, v)
	}
	key = strings.ToLower(strings.TrimSuffix(key, "/"))
	switch key {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return key
}

var _ Keychain = (*Docker)(nil)
