package remote

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/remote/creds"
)

// TestCleartext: a registry that is configured for http gives out tokens and redirects by http,
// also where settings for TLS have TLS tried first. One that is not gets no credentials that way,
// and those without any their token.
func TestCleartext(t *testing.T) {
	blob := randomBytes(100_000)
	user := creds.Credential{User: "u", Secret: "p"}
	for _, tc := range []struct {
		name      string
		secure    bool
		text      string // of hosts.toml, with the registry's address
		user      creds.Credential
		redirects bool // to itself, by the address that it knows
		says      string
	}{
		{"http", false, "server = %q\n", user, true, ""},
		{"http, with settings for TLS", false, "server = %q\nskip_verify = true\n", user, true, ""},
		{"https", true, "server = %q\nskip_verify = true\n", user, false, "in the clear"},
		{"https, anonymous", true, "server = %q\nskip_verify = true\n", creds.Credential{}, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newRegistry("reg")
			d := g.add(blob)
			// The address of no machine stands for this one, and is not taken for a loopback's.
			at := func(addr string) string { return strings.Replace(addr, "127.0.0.1", "0.0.0.0", 1) }
			tokens := newTokenServer(time.Hour, false)
			tokens.user, tokens.password, tokens.get = tc.user.User, tc.user.Secret, true
			var shown atomic.Bool // credentials, to the token server
			realm := "http://" + at(newServer(t, http.HandlerFunc(
				func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodGet || r.Header.Get("Authorization") != "" {
						shown.Store(true)
					}
					tokens.ServeHTTP(w, r)
				})))
			g.auth = func(r *http.Request) (string, int) {
				_, status := tokens.check(r)
				return fmt.Sprintf("Bearer realm=%q", realm), status
			}
			start := httptest.NewServer
			if tc.secure {
				start = httptest.NewTLSServer
			}
			srv := start(g)
			defer srv.Close()
			if tc.redirects {
				g.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
					if r.URL.RawQuery == "" {
						http.Redirect(w, r, at(srv.URL)+r.URL.Path+"?again", http.StatusFound)
					}
					return r.URL.RawQuery == ""
				}
			}
			c, err := New(Config{
				ConfigPath: hostsToml(t, "reg.test", fmt.Sprintf(tc.text, at(srv.URL))),
				Credentials: func(context.Context, string, string) ([]creds.Credential, error) {
					return []creds.Credential{tc.user}[:min(1, len(tc.user.User))], nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			p := make([]byte, 50_000)
			err = mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(t.Context(), p, 500)
			switch {
			case tc.says != "":
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("read: %v, want %q", err, tc.says)
				}
				if shown.Load() {
					t.Error("credentials were sent in the clear")
				}
			case err != nil || !bytes.Equal(p, blob[500:50_500]):
				t.Errorf("read: %v", err)
			}
		})
	}
}
