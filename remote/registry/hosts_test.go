package registry

import (
	"strconv"
	"testing"

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
