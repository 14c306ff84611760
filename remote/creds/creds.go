// Package creds finds the credentials for registries.
//
// A Keychain answers for a repository at a host; Chain asks several in turn:
//
//   - Docker: config.json files (also written by nerdctl, and Kubernetes' dockerconfigjson secrets)
//     and podman's and buildah's auth.json, with their credential helpers;
//   - Kubelet: the kubelet's credential provider plugins;
//   - Kept: what pulls came with, which package cri learns from the kubelet. It alone is stored, encrypted, because it has no
//     source to be read from again.
//
// Files are read again when they have changed, helpers are asked each time, which package remote
// does once per token, and plugins when what they said has ended.
//
// All keychains are safe for parallel use.
package creds

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
)

// Credential is what a registry is shown: user and password, or no user and an identity token, to
// be exchanged for access tokens. The zero Credential is none.
type Credential struct{ User, Secret string }

// Keychain knows credentials.
type Keychain interface {
	// Credentials returns those for a repository, named as in image references
	// ("docker.io/library/debian", "localhost:5000/a"), at a host ("registry-1.docker.io",
	// "localhost:5000", or a mirror's), those first that are to be tried first. None and no error:
	// it has none. Calls may run in parallel.
	Credentials(ctx context.Context, host, repository string) ([]Credential, error)
}

// Chain is the keychains' answers one after the other. An error counts only when there is no
// answer, so that one broken helper does not hide what another source knows.
func Chain(ks ...Keychain) Keychain { return chain(ks) }

type chain []Keychain

// Credentials implements Keychain.
func (c chain) Credentials(ctx context.Context, host, repository string) ([]Credential, error) {
	var out []Credential
	var errs []error
	for _, k := range c {
		found, err := k.Credentials(ctx, host, repository)
		if err != nil {
			errs = append(errs, err)
		}
		for _, f := range found {
			if f != (Credential{}) && !slices.Contains(out, f) {
				out = append(out, f)
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	return nil, errors.Join(errs...)
}

// at is a repository as it is found at a host: "docker.io/library/debian",
// "mirror.test:5000/library/debian".
func at(host, repository string) string {
	_, name, _ := strings.Cut(repository, "/")
	return canonical(host) + "/" + name
}

// matches tells whether a pattern covers a place that at returned. A pattern is a host, in which
// each label may have wildcards ("*.dkr.ecr.*.amazonaws.com"), and as much of a path as is wanted:
// Kubernetes' rules for config.json and for providers, but that paths end where a name ends.
// https://kubernetes.io/docs/concepts/containers/images/#config-json
func matches(pattern, place string) bool {
	host, dir, _ := strings.Cut(canonical(pattern), "/")
	at, name, _ := strings.Cut(place, "/")
	want, got := strings.Split(host, "."), strings.Split(at, ".")
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], got[i]); err != nil || !ok {
			return false
		}
	}
	return dir == "" || name == dir || strings.HasPrefix(name, dir+"/")
}

// specific compares patterns that match the same place: those with more path first, then those
// without wildcards.
func specific(a, b string) int {
	if n := strings.Count(canonical(b), "/") - strings.Count(canonical(a), "/"); n != 0 {
		return n
	}
	if n := strings.Count(a, "*") - strings.Count(b, "*"); n != 0 {
		return n
	}
	return strings.Compare(b, a)
}

// canonical strips scheme and API version from a host or a pattern, and knows the names of Docker
// Hub.
func canonical(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	for _, v := range []string{"/v1", "/v2"} {
		key = strings.TrimSuffix(key, v)
	}
	key = strings.ToLower(strings.TrimSuffix(key, "/"))
	host, rest, path := strings.Cut(key, "/")
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		host = "docker.io"
	}
	if path {
		return host + "/" + rest
	}
	return host
}
