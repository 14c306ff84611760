package creds

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// helper puts a credential helper into the PATH: a shell script that has read the server's address
// into $server.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "docker-credential-"+name), "#!/bin/sh\nread server\n"+script,
		0o755)
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
		{"auth", `{"auths":{"reg.test":{"auth":"` + basic("u:p:q") + `"}}}`, "reg.test", "u", "p:q",
			""},
		{"auth without padding",
			`{"auths":{"reg.test":{"auth":"` + strings.TrimRight(basic("u:pp"), "=") +
				`"}}}`, "reg.test", "u", "pp", ""},
		{"user and password", `{"auths":{"reg.test":{"username":"u","password":"p"}}}`, "reg.test",
			"u", "p", ""},
		{"port", `{"auths":{"reg.test":{"auth":"x"},"reg.test:5000":{"username":"u","password":"p"}}}`, "reg.test:5000", "u", "p", ""},
		{"another port", `{"auths":{"reg.test:5001":{"username":"u","password":"p"}}}`,
			"reg.test:5000", "", "", ""},
		{"key with scheme and version", `{"auths":{"https://reg.test/v2/":{"username":"u","password":"p"}}}`, "reg.test", "u", "p", ""},
		{"key with the repository's path", `{"auths":{"reg.test":{"username":"x","password":"y"},"reg.test/team":{"username":"u","password":"p"}}}`, "reg.test", "u", "p", ""},
		{"key with another path", `{"auths":{"reg.test/tea":{"username":"u","password":"p"},"reg.test/team/app/x":{"username":"u","password":"p"}}}`, "reg.test", "", "", ""},
		{"key with wildcards", `{"auths":{"*.dkr.*.test":{"username":"u","password":"p"}}}`,
			"1.dkr.west.test", "u", "p", ""},
		{"wildcard for another depth", `{"auths":{"*.test":{"username":"u","password":"p"}}}`,
			"a.b.test", "", "", ""},
		{"Docker Hub", `{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}`,
			"registry-1.docker.io", "u", "p", ""},
		{"Docker Hub, podman's key", `{"auths":{"docker.io":{"username":"u","password":"p"}}}`,
			"registry-1.docker.io", "u", "p", ""},
		{"identity token",
			`{"auths":{"reg.test":{"auth":"` + basic("u:") +
				`","identitytoken":"long"}}}`, "reg.test", "", "long", ""},
		{"another host", `{"auths":{"reg.test":{"auth":"x"}}}`, "other.test", "", "", ""},
		{"no base64", `{"auths":{"reg.test":{"auth":"%%"}}}`, "reg.test", "", "", "base64"},
		{"no colon", `{"auths":{"reg.test":{"auth":"` + basic("u") + `"}}}`, "reg.test", "", "",
			"user:password"},
		{"no JSON", `{"auths":{"reg.test":{"auth":"c2VjcmV0`, "reg.test", "", "", "not JSON"},
		{"other JSON", `{"auths":["c2VjcmV0"]}`, "reg.test", "", "", "not a Docker"},
		{"empty", ``, "reg.test", "", "", ""},
		{"store", `{"auths":{"reg.test":{}},"credsStore":"mine"}`, "reg.test", "helper", "reg.test",
			""},
		{"store, own entry first", `{"auths":{"reg.test":{"username":"u","password":"p"}},"credsStore":"mine"}`, "reg.test", "u", "p", ""},
		{"store, Docker Hub", `{"credsStore":"mine"}`, "registry-1.docker.io", "helper",
			"https://index.docker.io/v1/", ""},
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
				found, err := NewDocker(DockerOptions{Paths: []string{path}}).Credentials(t.Context(), tc.host, "reg.test/team/app")
				if got := first(found); got != (Credential{tc.user, tc.secret}) {
					t.Errorf("%q, want %q, %q", got, tc.user, tc.secret)
				}
				if (err != nil) != (tc.says != "") ||
					(err != nil && !strings.Contains(err.Error(), tc.says)) {
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
	d := NewDocker(DockerOptions{Paths: []string{}})
	path := filepath.Join(dir, "config.json")
	for k, want := range []string{"", "one", "two", "", "three"} {
		if want == "" {
			_ = os.Remove(path)
		} else {
			write(t, path,
				fmt.Sprintf(`{"auths":{"reg.test":{"username":"u","password":%q}}}`, want), 0o600)
			at := time.Unix(int64(1e9+k), 0)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		if found, err := d.Credentials(t.Context(), "reg.test",
			"reg.test/a"); first(found).Secret != want || err != nil {
			t.Errorf("step %d: %q, %v, want %q", k, found, err, want)
		}
	}
}

// TestLogins: what logins write is found where podman and docker write it, in podman's order.
func TestLogins(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, value := range map[string]string{
		"REGISTRY_AUTH_FILE": at("file.json"), "XDG_RUNTIME_DIR": at("run"), "HOME": dir,
		"XDG_CONFIG_HOME": "", "DOCKER_CONFIG": "",
	} {
		t.Setenv(name, value)
	}
	var want []Credential
	for _, file := range []string{"file.json", "run/containers/auth.json",
		".config/containers/auth.json", ".docker/config.json"} {
		if err := os.MkdirAll(filepath.Dir(at(file)), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, at(file),
			fmt.Sprintf(`{"auths":{"reg.test":{"username":"u","password":%q}}}`, file), 0o600)
		want = append(want, Credential{"u", file})
	}
	ask := func() []Credential {
		t.Helper()
		got, err := NewDocker(DockerOptions{}).Credentials(t.Context(), "reg.test", "reg.test/a")
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := ask(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("XDG_CONFIG_HOME", at("elsewhere"))
	if got := ask(); !slices.Equal(got, []Credential{want[1], want[3]}) {
		t.Errorf("%v without the first and the third", got)
	}
}

// TestHelperTime checks that a helper which hangs, with a child that keeps its output open, is
// given up.
func TestHelperTime(t *testing.T) {
	helper(t, "slow", "sleep 60 & sleep 60\n")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.json"), `{"credsStore":"slow"}`, 0o600)
	start := time.Now()
	_, err := NewDocker(DockerOptions{Paths: []string{dir},
		HelperTimeout: 200 * time.Millisecond}).Credentials(t.Context(), "reg.test", "reg.test/a")
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
	_, err := NewDocker(DockerOptions{Paths: []string{dir}}).Credentials(t.Context(), "reg.test",
		"reg.test/a")
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("error of %d bytes", len(fmt.Sprint(err)))
	}
}

func first(found []Credential) Credential {
	if len(found) == 0 {
		return Credential{}
	}
	return found[0]
}

// fixed is a Keychain that always answers the same.
type fixed struct {
	found []Credential
	err   error
}

func (f fixed) Credentials(context.Context, string, string) ([]Credential, error) {
	return f.found, f.err
}

func TestChain(t *testing.T) {
	fixed := func(err error, found ...Credential) Keychain { return fixed{found, err} }
	broken := errors.New("broken")
	a, b := Credential{"a", "1"}, Credential{"", "2"}
	for _, tc := range []struct {
		name  string
		chain []Keychain
		want  []Credential
		err   error
	}{
		{"empty", nil, nil, nil},
		{"all", []Keychain{fixed(nil, a), fixed(nil, b, a)}, []Credential{a, b}, nil},
		{"second", []Keychain{fixed(nil, Credential{}), fixed(nil, b)}, []Credential{b}, nil},
		{"after an error", []Keychain{fixed(broken), fixed(nil, b)}, []Credential{b}, nil},
		{"none, with an error", []Keychain{fixed(broken), fixed(nil)}, nil, broken},
	} {
		if got, err := Chain(tc.chain...).Credentials(t.Context(), "h", "h/a"); !slices.Equal(got,
			tc.want) || !errors.Is(err, tc.err) {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://reg.test/v1/":{"auth":"dTpw"}},"credHelpers":{"x":"y"},"credsStore":""}`), "reg.test")
	f.Add([]byte(`{"auths":{"docker.io":{"identitytoken":"x"},"*.io/a":{"username":"x"}}}`),
		"registry-1.docker.io")
	f.Fuzz(func(t *testing.T, b []byte, host string) {
		c, err := parseConfig(b)
		if err != nil {
			return
		}
		c.CredHelpers, c.CredsStore = nil, "" // no programs are run here
		found, _ := c.lookup(t.Context(), host, host+"/a/b", time.Second)
		if len(found) > len(matching(c.Auths, at(host, host+"/a/b"))) {
			t.Error("credentials from nowhere")
		}
	})
}
