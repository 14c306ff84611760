package creds

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// write makes a file, and its time differ from that of the file that it replaces.
func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// helper puts a credential helper into the PATH: a shell script that has read the server's address into $server.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "docker-credential-"+name), "#!/bin/sh\nread server\n"+script, 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func basic(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestDocker(t *testing.T) {
	helper(t, "mine", `case "$server" in
broken.test) echo "no key store"; exit 1;;
unknown.test) echo "credentials not found in native keychain"; exit 1;;
token.test) echo '{"Username":"<token>","Secret":"long"}';;
*) echo "{\"Username\":\"helper\",\"Secret\":\"$server\"}";;
esac
`)
	for _, tc := range []struct {
		name, config, host, user, secret, says string
	}{
		{"auth", `{"auths":{"reg.test":{"auth":"` + basic("u:p:q") + `"}}}`, "reg.test", "u", "p:q", ""},
		{"auth without padding", `{"auths":{"reg.test":{"auth":"` + strings.TrimRight(basic("u:pp"), "=") + `"}}}`, "reg.test", "u", "pp", ""},
		{"user and password", `{"auths":{"reg.test":{"username":"u","password":"p"}}}`, "reg.test", "u", "p", ""},
		{"port", `{"auths":{"reg.test":{"auth":"x"},"reg.test:5000":{"username":"u","password":"p"}}}`, "reg.test:5000", "u", "p", ""},
		{"another port", `{"auths":{"reg.test:5001":{"username":"u","password":"p"}}}`, "reg.test:5000", "", "", ""},
		{"key with scheme and version", `{"auths":{"https://reg.test/v2/":{"username":"u","password":"p"}}}`, "reg.test", "u", "p", ""},
		{"key with path", `{"auths":{"reg.test/team":{"username":"u","password":"p"}}}`, "reg.test", "", "", ""},
		{"Docker Hub", `{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}`, "registry-1.docker.io", "u", "p", ""},
		{"Docker Hub, podman's key", `{"auths":{"docker.io":{"username":"u","password":"p"}}}`, "registry-1.docker.io", "u", "p", ""},
		{"identity token", `{"auths":{"reg.test":{"auth":"` + basic("u:") + `","identitytoken":"long"}}}`, "reg.test", "", "long", ""},
		{"another host", `{"auths":{"reg.test":{"auth":"x"}}}`, "other.test", "", "", ""},
		{"no base64", `{"auths":{"reg.test":{"auth":"%%"}}}`, "reg.test", "", "", "base64"},
		{"no colon", `{"auths":{"reg.test":{"auth":"` + basic("u") + `"}}}`, "reg.test", "", "", "user:password"},
		{"no JSON", `{"auths":{"reg.test":{"auth":"c2VjcmV0`, "reg.test", "", "", "not JSON"},
		{"other JSON", `{"auths":["c2VjcmV0"]}`, "reg.test", "", "", "not a Docker"},
		{"empty", ``, "reg.test", "", "", ""},
		{"store", `{"auths":{"reg.test":{}},"credsStore":"mine"}`, "reg.test", "helper", "reg.test", ""},
		{"store, own entry first", `{"auths":{"reg.test":{"username":"u","password":"p"}},"credsStore":"mine"}`, "reg.test", "u", "p", ""},
		{"store, Docker Hub", `{"credsStore":"mine"}`, "registry-1.docker.io", "helper", "https://index.docker.io/v1/", ""},
		{"helper for the host", `{"auths":{"reg.test":{"username":"u","password":"p"}},"credHelpers":{"reg.test":"mine"}}`, "reg.test", "helper", "reg.test", ""},
		{"helper for another", `{"credHelpers":{"other.test":"mine"}}`, "reg.test", "", "", ""},
		{"helper's token", `{"credsStore":"mine"}`, "token.test", "", "long", ""},
		{"helper knows nothing", `{"credsStore":"mine"}`, "unknown.test", "", "", ""},
		{"helper fails", `{"credsStore":"mine"}`, "broken.test", "", "", "no key store"},
		{"no such helper", `{"credsStore":"absent"}`, "reg.test", "", "", "absent"},
		{"helper is a path", `{"credsStore":"../../bin/x"}`, "reg.test", "", "", "not a path"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "config.json"), tc.config, 0o600)
			for _, path := range []string{dir, filepath.Join(dir, "config.json")} {
				user, secret, err := NewDocker(DockerOptions{Paths: []string{path}}).Credentials(t.Context(), tc.host)
				if user != tc.user || secret != tc.secret {
					t.Errorf("%q, %q, want %q, %q", user, secret, tc.user, tc.secret)
				}
				if (err != nil) != (tc.says != "") || (err != nil && !strings.Contains(err.Error(), tc.says)) {
					t.Errorf("error %v, want %q", err, tc.says)
				}
				if err != nil && strings.Contains(err.Error(), "c2VjcmV0") {
					t.Errorf("error shows a secret: %v", err)
				}
			}
		})
	}
}

// TestChange checks that a changed, removed and new file count at once.
func TestChange(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	d := NewDocker(DockerOptions{})
	path := filepath.Join(dir, "config.json")
	for k, want := range []string{"", "one", "two", "", "three"} {
		if want == "" {
			_ = os.Remove(path)
		} else {
			write(t, path, fmt.Sprintf(`{"auths":{"reg.test":{"username":"u","password":%q}}}`, want), 0o600)
			at := time.Unix(int64(1e9+k), 0)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		if _, secret, err := d.Credentials(t.Context(), "reg.test"); secret != want || err != nil {
			t.Errorf("step %d: %q, %v, want %q", k, secret, err, want)
		}
	}
}

// TestHelperTime checks that a helper which hangs, with a child that keeps its output open, is given up.
func TestHelperTime(t *testing.T) {
	helper(t, "slow", "sleep 60 & sleep 60\n")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.json"), `{"credsStore":"slow"}`, 0o600)
	start := time.Now()
	_, _, err := NewDocker(DockerOptions{Paths: []string{dir}, HelperTimeout: 200 * time.Millisecond}).Credentials(t.Context(), "reg.test")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestHelperOutput(t *testing.T) {
	helper(t, "loud", "yes | head -c 3000000\n")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.json"), `{"credsStore":"loud"}`, 0o600)
	_, _, err := NewDocker(DockerOptions{Paths: []string{dir}}).Credentials(t.Context(), "reg.test")
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("error of %d bytes", len(fmt.Sprint(err)))
	}
}

func TestChain(t *testing.T) {
	fixed := func(user, secret string, err error) Keychain {
		return Func(func(context.Context, string) (string, string, error) { return user, secret, err })
	}
	broken := errors.New("broken")
	for _, tc := range []struct {
		name         string
		chain        []Keychain
		user, secret string
		err          error
	}{
		{"empty", nil, "", "", nil},
		{"first", []Keychain{fixed("a", "1", nil), fixed("b", "2", nil)}, "a", "1", nil},
		{"second", []Keychain{fixed("", "", nil), fixed("", "2", nil)}, "", "2", nil},
		{"after an error", []Keychain{fixed("", "", broken), fixed("b", "2", nil)}, "b", "2", nil},
		{"none, with an error", []Keychain{fixed("", "", broken), fixed("", "", nil)}, "", "", broken},
	} {
		if user, secret, err := Chain(tc.chain...).Credentials(t.Context(), "h"); user != tc.user || secret != tc.secret || !errors.Is(err, tc.err) {
			t.Errorf("%s: %q, %q, %v", tc.name, user, secret, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://reg.test/v1/":{"auth":"dTpw"}},"credHelpers":{"x":"y"},"credsStore":""}`), "reg.test")
	f.Add([]byte(`{"auths":{"docker.io":{"identitytoken":"x"}}}`), "registry-1.docker.io")
	f.Fuzz(func(t *testing.T, b []byte, host string) {
		c, err := parseConfig(b)
		if err != nil {
			return
		}
		c.CredHelpers, c.CredsStore = nil, "" // no programs are run here
		user, secret, err := c.lookup(t.Context(), host, time.Second)
		if err != nil && (user != "" || secret != "") {
			t.Errorf("both an error and credentials: %v", err)
		}
		if _, ok := find(c.Auths, host); !ok && secret != "" {
			t.Error("credentials from nowhere")
		}
	})
}
