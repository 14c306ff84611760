package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// silent accepts connections and says nothing.
func silent(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// run runs mica and returns what it wrote to stderr, when it wrote the first line, and its error.
func run(t *testing.T, args ...string) (said string, first time.Duration, err error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = w
	defer func() { os.Stderr = old }()
	start := time.Now()
	var lines strings.Builder
	var reading sync.WaitGroup
	reading.Go(func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			if first == 0 {
				first = time.Since(start)
			}
			lines.WriteString(s.Text() + "\n")
		}
	})
	cmd := rootCommand()
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	w.Close()
	reading.Wait()
	return lines.String(), first, err
}

// TestNowhere: a registry that cannot be reached is named, with the cause, from the first second
// on, and ends the command soon.
func TestNowhere(t *testing.T) {
	closed := silent(t, "tcp", "127.0.0.1:0")
	closed.Close()
	answers := func(h http.HandlerFunc) string {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		return srv.Listener.Addr().String()
	}
	dead := silent(t, "tcp", "127.0.0.1:0").Addr().String()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	hosts := t.TempDir()
	tls := secure.Listener.Addr().String()
	if err := os.MkdirAll(filepath.Join(hosts, tls), 0o755); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("server = \"https://%s\"\n", tls)
	file := filepath.Join(hosts, tls, "hosts.toml")
	if err := os.WriteFile(file, []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	const giveUp = 3 * time.Second
	for name, c := range map[string]struct {
		host, want string
		at         bool // at once, and so without a word before
	}{
		"closed port": {closed.Addr().String(), "connection refused", false},
		"wrong name":  {"nosuch.invalid", "nosuch.invalid", false},
		"silence":     {dead, "no byte arrived", false},
		"503 for ever": {answers(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}), "503", false},
		"certificate":   {tls, "certificate", true},
		"no such image": {answers(http.NotFound), "404", true},
		"busy for long": {answers(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		}), "429", false},
		"dead token server": {answers(func(w http.ResponseWriter, _ *http.Request) {
			challenge := fmt.Sprintf("Bearer realm=\"http://%s/t\",service=\"s\"", dead)
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		}), "token from " + dead, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, args := range [][]string{
				{"index", "create", "--push"}, {"index", "inspect"}, {"profile", "show"},
			} {
				start := time.Now()
				args = append(args, "--hosts-dir", hosts, "--give-up", giveUp.String())
				args = append(args, c.host+"/a/b:1")
				said, first, err := run(t, args...)
				took := time.Since(start)
				if err == nil || !strings.Contains(err.Error(), c.want) ||
					took > giveUp+2*time.Second {
					t.Errorf("%s: %v after %v", args, err, took)
				}
				if !c.at && (!strings.Contains(said, c.host) || first > 1500*time.Millisecond) {
					t.Errorf("%s: said %q, after %v", args, said, first)
				}
			}
		})
	}
}

// TestNobodyAnswers: who holds micad's socket and says nothing is not waited for.
func TestNobodyAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	silent(t, "unix", path)
	var all sync.WaitGroup
	for _, args := range [][]string{{"ps"}, {"du"}, {"gc"}, {"profile", "ls"}} {
		all.Go(func() {
			cmd := rootCommand()
			cmd.SetArgs(append(args, "--address", path))
			err := cmd.ExecuteContext(t.Context())
			if err == nil || !strings.Contains(err.Error(), path) ||
				!strings.Contains(err.Error(), "not answered") {
				t.Errorf("%s: %v", args, err)
			}
		})
	}
	all.Wait()
}
