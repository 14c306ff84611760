package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const twoMirrors = `
server = "http://up.test"
[host."http://m1.test"]
  capabilities = ["pull"]
  [host."http://m1.test".header]
    x-mirror = ["one"]
[host."http://m2.test/cache"]
  capabilities = ["pull", "resolve"]
`

// TestMirrors reads through two mirrors and the registry, of which some fail, and checks who was
// asked how often.
func TestMirrors(t *testing.T) {
	blob := randomBytes(200_000)
	all := func(f func(http.ResponseWriter, *http.Request)) fault { return first(1e9, f) }
	for _, tc := range []struct {
		name       string
		m1, m2, up fault
		asked      [3]int // requests of the first read
		again      [3]int // in all, after a second read at once
		failovers  uint64
		err        error
	}{
		{"all well", nil, nil, nil, [3]int{1, 0, 0}, [3]int{2, 0, 0}, 0, nil},
		{"first one broken", all(answer(500, "")), nil, nil, [3]int{1, 1, 0}, [3]int{1, 2, 0}, 1,
			nil},
		{"first one lacks the blob", all(answer(404, "")), nil, nil, [3]int{1, 1, 0},
			[3]int{1, 2, 0}, 1, nil},
		{"first one refuses", all(answer(403, "")), nil, nil, [3]int{1, 1, 0}, [3]int{1, 2, 0}, 1,
			nil},
		{"first one breaks off", all(cut(blob, 100_000)), nil, nil, [3]int{1, 1, 0},
			[3]int{1, 2, 0}, 1, nil},
		{"first one is busy", all(answer(429, "", "Retry-After", "30")), nil, nil, [3]int{1, 1, 0},
			[3]int{1, 2, 0}, 1, nil},
		{"first one ignores ranges", all(answer(200, string(blob))), nil, nil, [3]int{1, 1, 0},
			[3]int{1, 2, 0}, 1, nil},
		{"both broken", all(hangUp), all(cut(blob, 0)), nil, [3]int{1, 1, 1}, [3]int{1, 1, 2}, 2,
			nil},
		{"nobody has it", all(answer(404, "")), all(answer(404, "")), all(answer(404, "")),
			[3]int{1, 1, 1}, [3]int{2, 2, 2}, 4, ErrNotFound},
		{"one refuses, nobody has it", all(answer(403, "")), all(answer(404, "")),
			all(answer(404, "")), [3]int{1, 1, 1}, [3]int{2, 2, 2}, 4, ErrUnauthorized},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				gs := []*fakeRegistry{newRegistry("m1.test"), newRegistry("m2.test"),
					newRegistry("up.test")}
				for k, f := range []fault{tc.m1, tc.m2, tc.up} {
					gs[k].fault = f
					defer net.serve(gs[k].name, gs[k])()
				}
				gs[0].add(blob)
				gs[1].add(blob)
				d := gs[2].add(blob)
				c := net.client(Config{ConfigPath: hostsToml(t, "reg.test", twoMirrors)})
				defer c.Close()
				b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
				for _, want := range [][3]int{tc.asked, tc.again} {
					p := make([]byte, 150_000)
					err := b.ReadAt(t.Context(), p, 1000)
					if !errors.Is(err, tc.err) ||
						(err == nil && !bytes.Equal(p, blob[1000:151_000])) {
						t.Errorf("read: %v, want %v", err, tc.err)
					}
					for k, g := range gs {
						if n := len(g.requests("/blobs/")); n != want[k] {
							t.Errorf("%s was asked %d times, want %d", g.name, n, want[k])
						}
					}
				}
				if s := c.Stats(); s.Failovers != tc.failovers {
					t.Errorf("%d failovers, want %d", s.Failovers, tc.failovers)
				}
			})
		})
	}
}

// TestMirrorRequests checks what a mirror is sent: namespace, path, its own headers; and that tags
// are not resolved by those that may not.
func TestMirrorRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		m1, m2, up := newRegistry("m1.test"), newRegistry("m2.test"), newRegistry("up.test")
		blob := []byte("a blob")
		d := m1.add(blob)
		for _, g := range []*fakeRegistry{m1, m2, up} {
			g.manifests["1"] = []byte(`{"schemaVersion":2,"layers":[]}`)
			defer net.serve(g.name, g)()
		}
		c := net.client(Config{ConfigPath: hostsToml(t, "reg.test", twoMirrors),
			UserAgent: "mica/9"})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a/b:1")
		if _, err := i.Resolve(t.Context()); err != nil {
			t.Error(err)
		}
		if b, err := i.FetchBlob(t.Context(), d, 100); err != nil || string(b) != string(blob) {
			t.Errorf("%q, %v", b, err)
		}
		want := fmt.Sprint([]string{"GET /v2/a/b/blobs/" + d.Digest.String() + "?ns=reg.test"},
			[]string{"GET /cache/v2/a/b/manifests/1?ns=reg.test"}, []string(nil))
		if got := fmt.Sprint(m1.requests(""), m2.requests(""), up.requests("")); got != want {
			t.Errorf("requests %s\nwant %s", got, want)
		}
		if h := m1.headers()[0]; h.Get("X-Mirror") != "one" || h.Get("User-Agent") != "mica/9" {
			t.Errorf("headers %v", h)
		}
		if h := m2.headers()[0]; h.Get("X-Mirror") != "" {
			t.Errorf("headers of another host: %v", h)
		}
	})
}

// TestMirrorReturns checks that a mirror which failed is preferred again after a while.
func TestMirrorReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		m1, up := newRegistry("m1.test"), newRegistry("up.test")
		m1.fault = first(1, answer(502, ""))
		m1.add([]byte("blob"))
		d := up.add([]byte("blob"))
		defer net.serve("m1.test", m1)()
		defer net.serve("up.test", up)()
		c := net.client(Config{ConfigPath: hostsToml(t, "reg.test",
			"server = \"http://up.test\"\n[host.\"http://m1.test\"]\n")})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		var asked []int
		for range 4 {
			if err := b.ReadAt(t.Context(), make([]byte, 4), 0); err != nil {
				t.Fatal(err)
			}
			asked = append(asked, len(m1.requests("")))
			time.Sleep(600 * time.Millisecond)
		}
		if fmt.Sprint(asked) != "[1 1 2 3]" {
			t.Errorf("mirror was asked %v", asked)
		}
	})
}

// TestHostsChange checks that a changed hosts.toml counts within seconds, and that a broken one
// does not.
func TestHostsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		a, b := newRegistry("a.test"), newRegistry("b.test")
		d := a.add([]byte("blob"))
		b.add([]byte("blob"))
		defer net.serve("a.test", a)()
		defer net.serve("b.test", b)()
		path := hostsToml(t, "reg.test", `server = "http://a.test"`)
		c := net.client(Config{ConfigPath: path})
		defer c.Close()
		read := func() {
			t.Helper()
			if err := mustImage(t, c, "reg.test/x/y:1").Blob(d).ReadAt(t.Context(), make([]byte, 4),
				0); err != nil {
				t.Fatal(err)
			}
		}
		read()
		file := filepath.Join(path, "reg.test", "hosts.toml")
		for _, text := range []string{`server = "http://b.test"` + "\n",
			"server = \"http://c.test\"\nca = \"missing.pem\"\n"} {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			time.Sleep(hostsCheckEvery)
			read()
		}
		if x, y := len(a.requests("")), len(b.requests("")); x != 1 || y != 2 {
			t.Errorf("%d and %d requests, want 1 and 2", x, y)
		}
	})
}

// TestBrokenAtFirst: a reader that is patient waits where hosts.toml cannot be used at first, as
// after a restart while a CA is missing, and any other is told at once.
func TestBrokenAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("a.test")
		d := g.add([]byte("blob"))
		defer net.serve("a.test", g)()
		path := hostsToml(t, "reg.test", "server = \"http://a.test\"\nca = \"missing.pem\"\n")
		c := net.client(Config{ConfigPath: path})
		defer c.Close()
		b := mustImage(t, c, "reg.test/x/y:1").Blob(d)
		start := time.Now()
		err := b.ReadAt(t.Context(), make([]byte, 4), 0)
		if err == nil || !strings.Contains(err.Error(), "missing.pem") || time.Since(start) > 0 {
			t.Errorf("read: %v after %v", err, time.Since(start))
		}
		time.AfterFunc(time.Minute, func() {
			file := filepath.Join(path, "reg.test", "hosts.toml")
			if err := os.WriteFile(file, []byte(`server = "http://a.test"`), 0o644); err != nil {
				t.Error(err)
			}
		})
		err = b.WithPatience(5*time.Minute).ReadAt(t.Context(), make([]byte, 4), 0)
		if took := time.Since(start); err != nil || took > 63*time.Second {
			t.Errorf("read: %v after %v", err, took)
		}
	})
}

// TestTLS checks CA, client certificate, skip_verify, and that an unknown authority is an error at
// once.
func TestTLS(t *testing.T) {
	g := newRegistry("tls")
	blob := randomBytes(100_000)
	d := g.add(blob)
	srv := httptest.NewUnstartedServer(g)
	// it tells of the client that does not trust it
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	defer srv.Close()
	g.auth = func(r *http.Request) (string, int) {
		if len(r.TLS.PeerCertificates) == 0 ||
			r.TLS.PeerCertificates[0].SerialNumber.Int64() != 77 {
			return "", http.StatusForbidden
		}
		return "", 0
	}
	dir := t.TempDir()
	writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", srv.Certificate().Raw)
	clientCertificate(t, dir)
	client := fmt.Sprintf("client = [[%q, %q]]\n", filepath.Join(dir, "client.pem"),
		filepath.Join(dir, "client.key"))
	server := fmt.Sprintf("server = %q\n", srv.URL)
	for _, tc := range []struct {
		name, text string
		ok         bool
		says       string
	}{
		{"ca and client", server + fmt.Sprintf("ca = %q\n", filepath.Join(dir, "ca.pem")) + client,
			true, ""},
		{"skip_verify and client", server + "skip_verify = true\n" + client, true, ""},
		{"no client certificate", server + "skip_verify = true\n", false, "403"},
		{"unknown authority", server + client, false, "unknown authority"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := New(Config{ConfigPath: hostsToml(t, "reg.test", tc.text)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			p := make([]byte, 50_000)
			err = mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(ctx, p, 500)
			if (err == nil) != tc.ok || (err == nil && !bytes.Equal(p, blob[500:50_500])) {
				t.Errorf("read: %v", err)
			}
			if err != nil && (!strings.Contains(err.Error(), tc.says) || ctx.Err() != nil) {
				t.Errorf("read: %v, want %q at once", err, tc.says)
			}
		})
	}
}

// TestServerBeside: a server that has settings of its own, or another scheme, is another host than
// the entry with its address. Tags are not resolved where nothing proves who answers, if the file
// lets the server alone do so.
func TestServerBeside(t *testing.T) {
	g := newRegistry("reg")
	d := g.add([]byte("blob"))
	g.manifests["1"] = []byte(`{"schemaVersion":2,"layers":[]}`)
	srv := httptest.NewUnstartedServer(g)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	// The address of no machine stands for this one, and is not taken for a loopback's.
	at := func(addr string) string { return strings.Replace(addr, "127.0.0.1", "0.0.0.0", 1) }
	secure, plain := at(srv.Listener.Addr().String()), at(newServer(t, g))
	for text, want := range map[string][2]bool{ // a tag is resolved, a blob read
		"server = 'https://SECURE'\nskip_verify = true\n[host.'https://SECURE']\n":       {true, true},
		"server = 'http://PLAIN'\n[host.'https://PLAIN']\n":                              {true, true},
		"server = 'https://SECURE'\n[host.'https://SECURE']\nskip_verify = true\n":       {true, true},
		"server = 'https://SECURE'\n[host.'https://SECURE']\nskip_verify = true\nPULL\n": {false, true},
	} {
		text = strings.NewReplacer("SECURE", secure, "PLAIN", plain,
			"PULL", "capabilities = ['pull']").Replace(text)
		c, err := New(Config{ConfigPath: hostsToml(t, "reg.test", text)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		i := mustImage(t, c, "reg.test/a/b:1")
		_, resolve := i.Resolve(ctx)
		_, read := i.FetchBlob(ctx, d, 100)
		if (resolve == nil) != want[0] || (read == nil) != want[1] {
			t.Errorf("%s: resolve: %v, read: %v", text, resolve, read)
		}
	}
}

// TestLoopback checks that a registry on this machine is reached with and without TLS.
func TestLoopback(t *testing.T) {
	g := newRegistry("local")
	blob := randomBytes(1000)
	d := g.add(blob)
	plain, secure := httptest.NewServer(g), httptest.NewTLSServer(g)
	defer plain.Close()
	defer secure.Close()
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, srv := range []*httptest.Server{plain, secure} {
		p := make([]byte, 1000)
		if err := mustImage(t, c, srv.Listener.Addr().String()+"/a/b:1").Blob(d).ReadAt(t.Context(),
			p, 0); err != nil || !bytes.Equal(p, blob) {
			t.Errorf("%s: %v", srv.URL, err)
		}
	}
}

func writePEM(t *testing.T, path, kind string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}),
		0o600); err != nil {
		t.Fatal(err)
	}
}

func clientCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(77), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "client.pem"), "CERTIFICATE", cert)
	writePEM(t, filepath.Join(dir, "client.key"), "RSA PRIVATE KEY",
		x509.MarshalPKCS1PrivateKey(key))
}
