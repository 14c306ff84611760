// Package creds finds the credentials for registries.
//
// A Keychain answers for one host; Chain asks several in turn. Here is the one that reads Docker's config.json (also written by
// podman, nerdctl, buildah and Kubernetes' dockerconfigjson secrets), with its credential helpers. Nothing is kept: files are
// read again when they have changed, and helpers are asked each time, which package remote does once per token.
//
// All keychains are safe for parallel use.
package creds

import "context"

// Keychain knows credentials for hosts.
type Keychain interface {
	// Credentials returns user and password for host ("ghcr.io", "localhost:5000", "registry-1.docker.io"), or no user
	// and an identity token, to be exchanged for access tokens. Both are empty if it has none. Calls may run in parallel.
	Credentials(ctx context.Context, host string) (user, secret string, err error)
}

// Func is a function that is a Keychain.
type Func func(ctx context.Context, host string) (user, secret string, err error)

// Credentials implements Keychain.
func (f Func) Credentials(ctx context.Context, host string) (user, secret string, err error) {
	return f(ctx, host)
}

// Chain asks the keychains in turn. The first that has credentials is the answer; its error counts only when none after it has
// any, so that one broken helper does not hide what another source knows.
func Chain(ks ...Keychain) Keychain { return chain(ks) }

type chain []Keychain

// Credentials implements Keychain.
func (c chain) Credentials(ctx context.Context, host string) (user, secret string, err error) {
	var first error
	for _, k := range c {
		user, secret, err = k.Credentials(ctx, host)
		if err == nil && (user != "" || secret != "") {
			return user, secret, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", "", first
}
