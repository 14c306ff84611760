package e2e

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// micaAs runs mica with a home of its own, and returns what it ends with.
func micaAs(t *testing.T, home string, env []string, args ...string) (out, said string, code int) {
	t.Helper()
	bin, err := node.Binary("mica")
	mustf(t, err, "mica")
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(fixture.Context(t), bin, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}, env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// smallImage is an image of one layer.
func smallImage(t *testing.T) v1.Image {
	t.Helper()
	tar, err := images.Tar(images.File("file", 0o644, []byte(t.Name())))
	mustf(t, err, "tar")
	img, err := images.FromTars(nil, tar)
	mustf(t, err, "image")
	return img
}

// An index is pushed with the login that podman or docker has written, wherever that is. A login
// that is refused does not hide the next.
func TestIndexCreateLogins(t *testing.T) {
	r := fixture.Registry(t)
	home := t.TempDir()
	at := func(name string) string { return filepath.Join(home, name) }
	good := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, r.Host(),
		base64.StdEncoding.EncodeToString([]byte("user:secret")))
	stale := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, r.Host(),
		base64.StdEncoding.EncodeToString([]byte("user:changed")))
	type login struct {
		files map[string]string
		env   []string
		code  int
	}
	variable := []string{"REGISTRY_AUTH_FILE=" + at("ci.json")}
	session := []string{"XDG_RUNTIME_DIR=" + at("run")}
	cases := map[string]login{
		"variable":       {map[string]string{"ci.json": good}, variable, 0},
		"session":        {map[string]string{"run/containers/auth.json": good}, session, 0},
		"home":           {map[string]string{".config/containers/auth.json": good}, nil, 0},
		"docker":         {map[string]string{".docker/config.json": good}, nil, 0},
		"docker-config":  {map[string]string{"d/config.json": good}, []string{"DOCKER_CONFIG=" + at("d")}, 0},
		"stale-variable": {map[string]string{"ci.json": stale}, variable, 1},
		"stale-session": {map[string]string{"run/containers/auth.json": stale,
			".docker/config.json": good}, session, 0},
		"nobody": {nil, nil, 1},
	}
	refs := map[string]string{}
	for title := range cases {
		refs[title] = fixture.Push(t, r, title, smallImage(t))
	}
	r.RequireLogin("user", "secret")
	for title, c := range cases {
		t.Run(title, func(t *testing.T) {
			for file, content := range c.files {
				mustf(t, os.MkdirAll(filepath.Dir(at(file)), 0o700), "folder")
				writeFile(t, at(file), []byte(content))
				t.Cleanup(func() { os.Remove(at(file)) })
			}
			out, said, code := micaAs(t, home, c.env, "index", "create", "--push", refs[title])
			if code != c.code || code == 0 && !strings.HasPrefix(out, refs[title]+": index of 1 layers") ||
				code != 0 && !strings.Contains(said, "docker login") {
				t.Errorf("it ends with %d, prints %q and says %q", code, out, said)
			}
		})
	}
}

// manyPlatforms pushes an image for two platforms with Linux and one with Windows, with an
// attestation beside, as docker's build makes it.
func manyPlatforms(t *testing.T, host, ref string) string {
	t.Helper()
	tag, err := name.ParseReference(strings.Replace(ref, strings.Split(ref, "/")[0], host, 1),
		name.Insecure)
	mustf(t, err, "name")
	index, err := remote.Index(tag)
	mustf(t, err, "index")
	for _, p := range []v1.Platform{{OS: "windows", Architecture: "amd64", OSVersion: "10.0.1"},
		{OS: "unknown", Architecture: "unknown"}} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: smallImage(t), Descriptor: v1.Descriptor{Platform: &p}})
	}
	mustf(t, remote.WriteIndex(tag, index), "push")
	return ref
}

// What mica index create ends with and prints is what a script can rely on.
func TestIndexCreateScripted(t *testing.T) {
	r := fixture.Registry(t)
	all := manyPlatforms(t, r.Direct(), platformsOf(t, r))
	ref := fixture.Push(t, r, "small", smallImage(t))
	zstd := fixture.Push(t, r, "zstd", recompressed(t, smallImage(t)))
	home := t.TempDir()
	for title, c := range map[string]struct {
		args      []string
		code      int
		out, said []string // nil: nothing
	}{
		"all platforms": {[]string{"--push", "--all-platforms", all}, 0,
			[]string{"(linux/amd64): index of 1", "(linux/arm64): index of 1"}, nil},
		"to a file": {[]string{"--all-platforms", "-o", filepath.Join(home, "f"), all}, 2, nil,
			[]string{"--platform"}},
		"quiet": {[]string{"--push", "-q", ref}, 0, nil, nil},
		"verbose": {[]string{"-o", filepath.Join(home, "v"), "-v", ref}, 0, []string{ref},
			[]string{"mica: layer 1/1 sha256:", "storing its index"}},
		"nowhere": {[]string{ref}, 2, nil, []string{"--push", "-o FILE"}},
		"nothing": {[]string{"--push"}, 2, nil, []string{"mica index create --help"}},
		"unknown": {[]string{"--puhs", ref}, 2, nil, []string{"--puhs", "mica index create --help"}},
		"span":    {[]string{"--push", "--span-size", "much", ref}, 2, nil, []string{"--span-size"}},
		"both":    {[]string{"--push", "-q", "-v", ref}, 2, nil, []string{"exclude each other"}},
		"all and one": {[]string{"--push", "--all-platforms", "--platform", "linux/amd64", all}, 2,
			nil, []string{"exclude each other"}},
		"no image": {[]string{"--push", r.Host() + "/none:1"}, 1, nil, []string{"404"}},
		"too late": {[]string{"--push", "--timeout", "1ns", ref}, 1, nil,
			[]string{"not finished", "--timeout 1ns"}},
		"zstd": {[]string{"--push", zstd}, 3, nil, []string{"no layer of", "can be indexed"}},
	} {
		t.Run(title, func(t *testing.T) {
			out, said, code := micaAs(t, home, nil, append([]string{"index", "create"}, c.args...)...)
			if code != c.code {
				t.Errorf("it ends with %d", code)
			}
			for _, w := range c.out {
				if !strings.Contains(out, w) {
					t.Errorf("no %q in %q", w, out)
				}
			}
			for _, w := range c.said {
				if !strings.Contains(said, w) {
					t.Errorf("no %q in %q", w, said)
				}
			}
			if c.out == nil && out != "" || c.said == nil && said != "" ||
				strings.Contains(said, "\x1b") {
				t.Errorf("it prints %q and says %q", out, said)
			}
			if title == "all platforms" && strings.Count(out, "\n") != 2 {
				t.Errorf("it prints %q", out)
			}
		})
	}
	for _, p := range []string{"linux/amd64", "linux/arm64"} {
		if _, said, code := micaAs(t, home, nil, "index", "inspect", "--platform", p, all); code != 0 {
			t.Errorf("%s has no index: %s", p, said)
		}
	}
}

// recompressed is an image whose layer is in zstd.
func recompressed(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	img, err := images.WithBlob(img, 0, images.ZstdLayer, images.Zstd(1<<20))
	mustf(t, err, "recompress")
	return img
}
