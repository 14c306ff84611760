package publish

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// rootfsWith makes a container's files: names and contents.
func rootfsWith(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestContainerSpec(t *testing.T) {
	for name, c := range map[string]struct {
		image ocispec.ImageConfig
		args  []string
		want  []string // nil: an error
		cwd   string
		env   []string
	}{
		"entrypoint and command": {
			image: ocispec.ImageConfig{Entrypoint: []string{"/e", "-x"}, Cmd: []string{"c"},
				WorkingDir: "/srv"},
			want: []string{"/e", "-x", "c"}, cwd: "/srv", env: []string{defaultPath},
		},
		"another command": {
			image: ocispec.ImageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"c"},
				Env: []string{"PATH=/x", "A=b c"}},
			args: []string{"d", "e"},
			want: []string{"/e", "d", "e"}, cwd: "/", env: []string{"PATH=/x", "A=b c"},
		},
		"no entrypoint": {
			image: ocispec.ImageConfig{Cmd: []string{"c"}}, args: []string{"d"},
			want: []string{"d"}, cwd: "/", env: []string{defaultPath},
		},
		"nothing": {},
	} {
		k := &container{id: "x", rootfs: "/rootfs"}
		s, err := k.spec(t.Context(), c.image, c.args)
		if c.want == nil {
			if err == nil {
				t.Errorf("%s: no error", name)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !slices.Equal(s.Process.Args, c.want) || s.Process.Cwd != c.cwd ||
			!slices.Equal(s.Process.Env, c.env) {
			t.Errorf("%s: %q in %s with %q; want %q in %s with %q", name, s.Process.Args,
				s.Process.Cwd, s.Process.Env, c.want, c.cwd, c.env)
		}
		if s.Root.Path != "/rootfs" || s.Linux.Resources != nil || s.Linux.CgroupsPath != "" ||
			s.Process.Terminal {
			t.Errorf("%s: root %s, resources %v, control group %q", name, s.Root.Path,
				s.Linux.Resources, s.Linux.CgroupsPath)
		}
		if slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
			return n.Type == specs.NetworkNamespace
		}) {
			t.Errorf("%s: it has a network of its own", name)
		}
	}
}

func TestSetUser(t *testing.T) {
	const passwd = "root:x:0:0::/root:/bin/sh\nredis:x:101:102::/:/bin/false\n"
	const group = "root:x:0:\nwheel:x:10:root,redis\nredis:x:102:\n"
	full := map[string]string{"etc/passwd": passwd, "etc/group": group}
	for name, c := range map[string]struct {
		files    map[string]string
		user     string
		uid, gid uint32
		more     []uint32
		fails    bool
	}{
		"none":           {files: full, more: []uint32{0, 10}},
		"none, no files": {more: []uint32{0}},
		"name":           {files: full, user: "redis", uid: 101, gid: 102, more: []uint32{102, 10}},
		"number":         {files: full, user: "101", uid: 101, gid: 102, more: []uint32{102, 10}},
		"unknown number": {files: full, user: "4711", uid: 4711, more: []uint32{0}},
		"pair":           {user: "7:8", uid: 7, gid: 8, more: []uint32{8}},
		"names":          {files: full, user: "redis:wheel", uid: 101, gid: 10, more: []uint32{10}},
		"unknown name":   {files: full, user: "nobody", fails: true},
		"name, no files": {user: "redis", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			root := rootfsWith(t, c.files)
			k := &container{id: "x", rootfs: root}
			s, err := k.spec(t.Context(), ocispec.ImageConfig{Cmd: []string{"/bin/true"}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			err = setUser(t.Context(), path, c.user)
			if c.fails {
				if err == nil {
					t.Fatal("no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b, err = os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
			var got oci.Spec
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			u := got.Process.User
			if u.UID != c.uid || u.GID != c.gid || !slices.Equal(u.AdditionalGids, c.more) {
				t.Errorf("got %d:%d %v, want %d:%d %v", u.UID, u.GID, u.AdditionalGids, c.uid,
					c.gid, c.more)
			}
			if !slices.Equal(got.Process.Args, s.Process.Args) || got.Root.Path != root {
				t.Error("more than the user was changed")
			}
		})
	}
}
