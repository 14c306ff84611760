package registry

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestHosts checks where a registry is asked of which nothing is configured.
func TestHosts(t *testing.T) {
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for registry, want := range map[string][3]string{
		"registry.example:5000": {"https", "registry.example:5000", ""},
		"docker.io":             {"https", "registry-1.docker.io", ""},
		"127.0.0.1:5000":        {"http", "127.0.0.1:5000", ""},
		"localhost":             {"https", "localhost", ""},
	} {
		set, err := c.Repository(registry, "a/b").Hosts(t.Context())
		if err != nil || len(set.hosts) != 1 {
			t.Fatalf("%s: %v, %v", registry, set, err)
		}
		if h := set.hosts[0]; [3]string{h.Scheme, h.Name, h.Namespace} != want {
			t.Errorf("%s is %s://%s, ns %q", registry, h.Scheme, h.Name, h.Namespace)
		}
	}
}

// TestForgets checks that a client does not remember registries without bound.
func TestForgets(t *testing.T) {
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for k := range 2*maxShared + 1 {
		if _, err := c.hostsOf(t.Context(), "reg"+strconv.Itoa(k)+".test"); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.hosts) > maxShared {
		t.Errorf("%d registries", len(c.hosts))
	}
}

// TestRenewedCertificates: certificates that hosts.toml names are read again when they change, in
// whichever folder they lie.
func TestRenewedCertificates(t *testing.T) {
	srv := httptest.NewTLSServer(nil)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	srv.Close()
	for _, text := range []string{
		"ca = 'FOLDER/ca.pem'\n", "ca = ['../../tls/ca.pem']\n",
		"[host.'https://m.test']\nca = 'FOLDER/ca.pem'\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			at := filepath.Join(dir, "tls", "ca.pem")
			write := func(path, text string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(at, string(ca))
			write(filepath.Join(dir, "hosts", "reg.test", "hosts.toml"),
				strings.ReplaceAll(text, "FOLDER", filepath.Dir(at)))
			c, err := New(Config{ConfigPath: filepath.Join(dir, "hosts")})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var last *Hosts
			for k, renewed := range []bool{true, false, true, false} {
				if k > 0 && renewed {
					write(at, string(ca)+"\n")
				}
				set, err := c.hostsOf(t.Context(), "reg.test")
				if err != nil || (set != last) != renewed {
					t.Errorf("%s: step %d: read again %v, want %v; %v", text, k, set != last, renewed, err)
				}
				last = set
				time.Sleep(hostsCheckEvery)
			}
		})
	}
}
