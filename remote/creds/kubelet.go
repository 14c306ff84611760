package creds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

// KubeletOptions says where the kubelet's credential providers are: they are its flags
// --image-credential-provider-config and --image-credential-provider-bin-dir.
type KubeletOptions struct {
	// a file, or a directory of .yaml, .yml and .json files, in the order of their names
	Config string
	BinDir string
	// Timeout bounds one run of a provider. 0: 15 s, less than package remote waits for a token.
	Timeout time.Duration
	Logger  *slog.Logger // hears of providers that cannot be used; nil: slog.Default()
}

// Kubelet is a Keychain of the kubelet's credential providers: programs that a cloud gives, which
// make credentials for its registries from the node's own identity. They are run as the kubelet
// runs them, and what they say is kept in memory for as long as they say.
// https://kubernetes.io/docs/reference/config-api/kubelet-credentialprovider.v1/
type Kubelet struct {
	o KubeletOptions

	mu        sync.Mutex
	stamp     string // of the configuration that was read last
	providers []provider
	err       error             // of reading it
	said      map[string]answer // by provider, and what its answer holds for
}

// provider is an entry of CredentialProviderConfig, of what is known here.
type provider struct {
	Name         string   `yaml:"name"`
	MatchImages  []string `yaml:"matchImages"`
	DefaultCache string   `yaml:"defaultCacheDuration"`
	APIVersion   string   `yaml:"apiVersion"`
	Args         []string `yaml:"args"`
	Env          []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	TokenAttributes struct {
		RequireServiceAccount *bool `yaml:"requireServiceAccount"`
	} `yaml:"tokenAttributes"`

	cache time.Duration
}

// request and response are what a provider is asked by its standard input and answers on its
// standard output.
type providerRequest struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Image      string `json:"image"`
}

type providerResponse struct {
	Kind          string  `json:"kind"`
	APIVersion    string  `json:"apiVersion"`
	CacheKeyType  string  `json:"cacheKeyType"` // Image, Registry or Global
	CacheDuration *string `json:"cacheDuration"`
	Auth          map[string]struct {
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"auth"` // by pattern
}

type answer struct {
	auth  map[string]Credential
	until time.Time
}

// maxAnswers bounds what is kept in memory.
const maxAnswers = 1024

// NewKubelet returns a keychain of the kubelet's providers. It does no I/O.
func NewKubelet(o KubeletOptions) *Kubelet {
	if o.Timeout <= 0 {
		o.Timeout = 15 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Kubelet{o: o, said: map[string]answer{}}
}

// Credentials implements Keychain. All providers that are for the place are asked, as the kubelet
// does.
func (k *Kubelet) Credentials(ctx context.Context, host, repository string) ([]Credential, error) {
	providers, err := k.read()
	if err != nil {
		return nil, fmt.Errorf("credential providers: %w", err)
	}
	place := at(host, repository)
	var out []Credential
	var errs []error
	for i := range providers {
		p := &providers[i]
		if !slices.ContainsFunc(p.MatchImages, func(pattern string) bool {
			return matches(pattern, place)
		}) {
			continue
		}
		auth, err := k.ask(ctx, p, place)
		if err != nil {
			errs = append(errs, fmt.Errorf("credential provider %s: %w", p.Name, err))
			continue
		}
		for _, pattern := range matching(auth, place) {
			out = append(out, auth[pattern])
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	return nil, errors.Join(errs...)
}

// ask returns what a provider says of an image, by patterns.
func (k *Kubelet) ask(
	ctx context.Context, p *provider, image string,
) (map[string]Credential, error) {
	host, _, _ := strings.Cut(image, "/")
	keys := map[string]string{"Image": p.Name + "\n" + image, "Registry": p.Name + "\n" + host,
		"Global": p.Name}
	now := time.Now()
	k.mu.Lock()
	for _, key := range keys {
		if a, ok := k.said[key]; ok && now.Before(a.until) {
			k.mu.Unlock()
			return a.auth, nil
		}
	}
	k.mu.Unlock()
	r, err := k.run(ctx, p, image)
	if err != nil {
		return nil, err
	}
	a := answer{auth: map[string]Credential{}, until: now.Add(p.cache)}
	for pattern, c := range r.Auth {
		a.auth[pattern] = Credential{c.Username, c.Password}
	}
	if r.CacheDuration != nil {
		d, err := time.ParseDuration(*r.CacheDuration)
		if err != nil {
			return nil, fmt.Errorf("cacheDuration %.20q", *r.CacheDuration)
		}
		a.until = now.Add(d)
	}
	key, ok := keys[r.CacheKeyType]
	if !ok {
		return nil, fmt.Errorf("cacheKeyType %.20q", r.CacheKeyType)
	}
	if a.until.After(now) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if len(k.said) >= maxAnswers {
			clear(k.said)
		}
		k.said[key] = a
	}
	return a.auth, nil
}

// run runs a provider.
func (k *Kubelet) run(ctx context.Context, p *provider, image string) (*providerResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, k.o.Timeout)
	defer cancel()
	in, err := json.Marshal(providerRequest{"CredentialProviderRequest", p.APIVersion, image})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(k.o.BinDir, p.Name), p.Args...)
	cmd.WaitDelay = time.Second // a grandchild may hold the pipe
	cmd.Stdin = bytes.NewReader(in)
	cmd.Env = os.Environ()
	for _, e := range p.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	var out, says capped
	cmd.Stdout, cmd.Stderr = &out, &says
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %.300q", err, says.b)
	}
	var r providerResponse
	if err := json.Unmarshal(out.b, &r); err != nil {
		return nil, errors.New("answer is not JSON") // without what it says: secrets
	}
	if r.Kind != "CredentialProviderResponse" || r.APIVersion != p.APIVersion {
		return nil, fmt.Errorf("answer is a %.50q %.50q, not a CredentialProviderResponse %s",
			r.Kind, r.APIVersion, p.APIVersion)
	}
	return &r, nil
}

// read returns the providers, read again where the configuration has changed.
func (k *Kubelet) read() ([]provider, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	files, stamp, err := configFiles(k.o.Config)
	if err != nil {
		return nil, err
	}
	if stamp == k.stamp {
		return k.providers, k.err
	}
	k.stamp, k.providers, k.err = stamp, nil, nil
	clear(k.said)
	for _, f := range files {
		b, err := readBounded(f)
		if err == nil {
			var found []provider
			found, err = k.parse(b)
			k.providers = append(k.providers, found...)
		}
		if err != nil {
			k.providers, k.err = nil, fmt.Errorf("%s: %w", f, err)
			break
		}
	}
	return k.providers, k.err
}

// configFiles returns the files that make up a configuration, and a stamp that changes when they
// do.
func configFiles(path string) (files []string, stamp string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, "", err
	}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, "", err
		}
		for _, e := range entries {
			switch filepath.Ext(e.Name()) {
			case ".json", ".yaml", ".yml":
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	} else {
		files = []string{path}
	}
	var b strings.Builder
	for _, f := range files {
		info, err := os.Stat(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		fmt.Fprintf(&b, "%s %d %d\n", f, info.Size(), info.ModTime().UnixNano())
	}
	return files, b.String(), nil
}

// parse reads a CredentialProviderConfig, of which JSON is a form, too.
// https://kubernetes.io/docs/reference/config-api/kubelet-config.v1/#kubelet-config-k8s-io-v1-CredentialProviderConfig
func (k *Kubelet) parse(b []byte) ([]provider, error) {
	var c struct {
		Kind      string     `yaml:"kind"`
		Providers []provider `yaml:"providers"`
	}
	if err := yaml.Unmarshal(b, &c); err != nil {
		return nil, errors.New("not YAML") // without the error: it may quote the file
	}
	if c.Kind != "CredentialProviderConfig" {
		return nil, fmt.Errorf("it is a %.50q, not a CredentialProviderConfig", c.Kind)
	}
	var out []provider
	for _, p := range c.Providers {
		if p.Name == "" || p.Name == "." || p.Name == ".." || strings.ContainsAny(p.Name, "/\\ ") {
			return nil, fmt.Errorf("provider name %.50q", p.Name)
		}
		switch p.APIVersion {
		case "credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1",
			"credentialprovider.kubelet.k8s.io/v1alpha1":
		default:
			return nil, fmt.Errorf("provider %s: apiVersion %.50q", p.Name, p.APIVersion)
		}
		if r := p.TokenAttributes.RequireServiceAccount; r != nil && *r {
			k.o.Logger.Warn("credential provider wants a pod's service account, which only the "+
				"kubelet knows; it is left out", "provider", p.Name)
			continue
		}
		if p.DefaultCache != "" {
			d, err := time.ParseDuration(p.DefaultCache)
			if err != nil || d < 0 {
				return nil, fmt.Errorf("provider %s: defaultCacheDuration %.20q", p.Name,
					p.DefaultCache)
			}
			p.cache = d
		}
		out = append(out, p)
	}
	return out, nil
}

var _ Keychain = (*Kubelet)(nil)
