package creds

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// plugin is a credential provider: it notes that it ran and what it was asked, and answers.
func plugin(t *testing.T, dir, name, answer string) (asked func() []string) {
	t.Helper()
	log := filepath.Join(dir, name+".log")
	write(t, filepath.Join(dir, name),
		"#!/bin/sh\ncat >>"+log+"\necho \" $1 $REGION\" >>"+log+"\n"+answer, 0o755)
	return func() []string {
		b, err := os.ReadFile(log)
		if err != nil {
			return nil
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

// says is the script of a plugin that answers.
func says(cache, duration, auth string) string {
	return fmt.Sprintf(`echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":%q,"cacheDuration":%s,"auth":{%s}}'`,
		cache, duration, auth)
}

const providers = `
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: cloud
    matchImages: ["*.dkr.ecr.*.amazonaws.com", "reg.test/team"]
    defaultCacheDuration: "1h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: ["get"]
    env: [{name: REGION, value: west}]
  - name: pods
    matchImages: ["reg.test"]
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    tokenAttributes: {requireServiceAccount: true, serviceAccountTokenAudience: x}
`

func kubelet(t *testing.T, config string) (k *Kubelet, dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, filepath.Join(dir, "config.yaml"), config, 0o600)
	return NewKubelet(KubeletOptions{
		Config: filepath.Join(dir, "config.yaml"), BinDir: dir, Timeout: 2 * time.Second,
		Logger: slog.New(slog.DiscardHandler),
	}), dir
}

func TestKubelet(t *testing.T) {
	k, dir := kubelet(t, providers)
	asked := plugin(t, dir, "cloud", says("Registry", "null", `"*.amazonaws.com":{"username":"no","password":"no"},"*.dkr.ecr.*.amazonaws.com":{"username":"AWS","password":"token"},"reg.test/team/app":{"username":"a","password":"b"}`))
	for _, tc := range []struct {
		host, repository string
		want             []Credential
	}{
		{"1.dkr.ecr.eu.amazonaws.com", "1.dkr.ecr.eu.amazonaws.com/app",
			[]Credential{{"AWS", "token"}}},
		{"1.dkr.ecr.eu.amazonaws.com", "1.dkr.ecr.eu.amazonaws.com/other",
			[]Credential{{"AWS", "token"}}},
		{"reg.test", "reg.test/team/app", []Credential{{"a", "b"}}},
		{"reg.test", "reg.test/teams/app", nil},
		{"mirror.test", "reg.test/team/app", nil},
		{"ecr.eu.amazonaws.com", "ecr.eu.amazonaws.com/app", nil},
	} {
		got, err := k.Credentials(t.Context(), tc.host, tc.repository)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s at %s: %q, %v, want %q", tc.repository, tc.host, got, err, tc.want)
		}
	}
	want := []string{
		`{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"1.dkr.ecr.eu.amazonaws.com/app"} get west`,
		`{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"reg.test/team/app"} get west`,
	}
	if got := asked(); !slices.Equal(got, want) {
		t.Errorf("the provider was asked\n%q\nwant\n%q", got, want)
	}
}

// TestKubeletCache: an answer holds for what it says, and for as long.
func TestKubeletCache(t *testing.T) {
	for _, tc := range []struct {
		cache, duration string
		runs            int // for two images, each twice, at one host, and one at another
	}{
		{"Image", `"1h"`, 3},
		{"Registry", `"1h"`, 2},
		{"Global", `"1h"`, 1},
		{"Image", `"0s"`, 5},
		{"Image", "null", 3}, // the configuration's
	} {
		k, dir := kubelet(t, strings.ReplaceAll(providers, "reg.test/team", "*.test"))
		asked := plugin(t, dir, "cloud",
			says(tc.cache, tc.duration, `"*.test":{"username":"a","password":"b"}`))
		for _, r := range []string{"reg.test/a", "reg.test/b", "reg.test/a", "reg.test/b",
			"other.test/a"} {
			host, _, _ := strings.Cut(r, "/")
			if got, err := k.Credentials(t.Context(), host, r); err != nil || len(got) != 1 {
				t.Errorf("%q, %v", got, err)
			}
		}
		if n := len(asked()); n != tc.runs {
			t.Errorf("%s for %s: %d runs, want %d", tc.cache, tc.duration, n, tc.runs)
		}
	}
}

func TestKubeletErrors(t *testing.T) {
	for _, tc := range []struct{ name, config, script, says string }{
		{"fails", providers, "echo no identity >&2; exit 3", "no identity"},
		{"no JSON", providers, "echo secret", "not JSON"},
		{"another kind", providers, `echo '{"kind":"x"}'`, "not a CredentialProviderResponse"},
		{"hangs", providers, "sleep 60 & sleep 60", "deadline"},
		{"says too much", providers, "yes | head -c 3000000", "exit status"},
		{"another cache", providers, says("Node", "null", ""), "cacheKeyType"},
		{"no YAML", "a: [secret", "", "not YAML"},
		{"another file", "kind: Pod", "", "not a CredentialProviderConfig"},
		{"path", strings.Replace(providers, "name: cloud", "name: ../cloud", 1), "",
			"provider name"},
		{"version", strings.Replace(providers, "kubelet.k8s.io/v1\n    args",
			"kubelet.k8s.io/v9\n    args", 1), "", "apiVersion"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, dir := kubelet(t, tc.config)
			plugin(t, dir, "cloud", tc.script)
			start := time.Now()
			got, err := k.Credentials(t.Context(), "reg.test", "reg.test/team")
			if err == nil || !strings.Contains(err.Error(), tc.says) ||
				strings.Contains(err.Error(), "secret") || got != nil {
				t.Errorf("%q, %v, want %q", got, err, tc.says)
			}
			if time.Since(start) > 10*time.Second {
				t.Errorf("took %v", time.Since(start))
			}
		})
	}
	if _, err := NewKubelet(KubeletOptions{Config: "/nowhere"}).Credentials(t.Context(), "reg.test",
		"reg.test/a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no configuration: %v", err)
	}
}

// TestKubeletChange: a changed configuration counts at once, and what was said before does not.
func TestKubeletChange(t *testing.T) {
	k, dir := kubelet(t, providers)
	plugin(t, dir, "cloud", says("Global", `"1h"`, `"reg.test":{"username":"a","password":"b"}`))
	plugin(t, dir, "other", says("Global", `"1h"`, `"reg.test":{"username":"c","password":"d"}`))
	for k2, want := range []string{"a", "c"} {
		if k2 == 1 {
			write(t, filepath.Join(dir, "config.yaml"),
				strings.Replace(providers, "name: cloud", "name: other", 1)+"\n", 0o600)
		}
		if got, err := k.Credentials(t.Context(), "reg.test",
			"reg.test/team"); first(got).User != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
}

func FuzzKubelet(f *testing.F) {
	f.Add([]byte(providers), "reg.test/team/app")
	f.Fuzz(func(t *testing.T, b []byte, place string) {
		k := NewKubelet(KubeletOptions{Logger: slog.New(slog.DiscardHandler)})
		found, err := k.parse(b)
		if err != nil {
			return
		}
		for _, p := range found {
			if p.Name != filepath.Base(p.Name) || p.Name == ".." || p.cache < 0 {
				t.Errorf("provider %q, %v", p.Name, p.cache)
			}
			for _, m := range p.MatchImages {
				matches(m, place)
			}
		}
	})
}
