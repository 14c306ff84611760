package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"text/template"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// tree is the files of a machine by path.
type tree map[string]string

// containerd is the path of a copy of containerd's binary, and why there is none.
var containerd string
var errContainerd error

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "containerd")
	path, lookErr := exec.LookPath("containerd")
	b, readErr := os.ReadFile(path)
	containerd = filepath.Join(dir, "containerd")
	errContainerd = errors.Join(err, lookErr, readErr, os.WriteFile(containerd, b, 0o755))
	errContainerd = errors.Join(errContainerd, os.Setenv("PATH", "/usr/bin")) // of the machines
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// machine is a folder that is the root of the filesystem for a containerd and for mica setup.
func machine(t *testing.T, files tree) string {
	t.Helper()
	root := t.TempDir()
	write(t, root+os.DevNull, "")
	err := os.MkdirAll(root+"/usr/bin", 0o755)
	err = errors.Join(errContainerd, err, os.Link(containerd, root+"/usr/bin/containerd"))
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range files {
		write(t, root+path, content)
	}
	return root
}

func write(t *testing.T, path, content string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err = errors.Join(err, os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// in calls f with root as the filesystem's root, on a thread that ends with it.
func in(t *testing.T, root string, f func() error) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = errors.Join(unix.Chroot(root), unix.Chdir("/"))
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// run is Run or Undo on a machine; it returns what was printed.
func run(
	t *testing.T, root string, o Options, do func(context.Context, Options) error,
) (string, error) {
	t.Helper()
	var out bytes.Buffer
	o.Out, o.Micad = &out, micadConfig
	o.Confirm = func() error { return nil }
	err := in(t, root, func() error { return do(t.Context(), o) })
	return out.String(), err
}

// content are all files of a machine but containerd's binary.
func content(t *testing.T, root string) tree {
	t.Helper()
	all := tree{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "containerd" {
			return err
		}
		b, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, root)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// dumped is what containerd says of a configuration of a machine.
func dumped(t *testing.T, root, config string) conf.Table {
	t.Helper()
	var out []byte
	err := in(t, root, func() (err error) {
		cmd := exec.CommandContext(t.Context(), "/usr/bin/containerd", "--config", config,
			"config", "dump")
		cmd.Stderr = t.Output()
		out, err = cmd.Output()
		return err
	})
	var c conf.Table
	if err = errors.Join(err, toml.Unmarshal(out, &c)); err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	here = "linux/" + runtime.GOARCH

	containerd17 = `disabled_plugins = []
imports = []
root = "/var/lib/containerd"
version = 2

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    max_concurrent_downloads = 3
    sandbox_image = "registry.k8s.io/pause:3.8"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "runc"
      disable_snapshot_annotations = true
      discard_unpacked_layers = false
      snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = ""
      [plugins."io.containerd.grpc.v1.cri".registry.mirrors]
  [plugins."io.containerd.transfer.v1.local"]
    config_path = ""
    max_concurrent_downloads = 3
    [[plugins."io.containerd.transfer.v1.local".unpack_config]]
      differ = ""
      platform = "` + here + `"
      snapshotter = "overlayfs"
`
	eks = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images']
discard_unpacked_layers = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "localhost/kubernetes/pause"

[plugins."io.containerd.cri.v1.images".registry]
config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
`
	kind = `# explicitly use v2 config format
version = 2

[proxy_plugins]
[proxy_plugins."fuse-overlayfs"]
  type = "snapshot"
  address = "/run/containerd-fuse-overlayfs.sock"

[plugins."io.containerd.grpc.v1.cri".containerd]
  discard_unpacked_layers = true
  snapshotter = "overlayfs"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
`
	rancher = `# File generated by k3s. DO NOT EDIT. Use config-v3.toml.tmpl instead.
version = 3
@IMPORTS@
root = "/var/lib/rancher/k3s/agent/containerd"
state = "/run/k3s/containerd"

[grpc]
  address = "/run/k3s/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "@SNAPSHOTTER@"
  disable_snapshot_annotations = true
  use_local_image_pull = true

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d"
`
	micadConfig = "/etc/micad/config.toml"
	rancherDir  = "/var/lib/rancher/k3s/agent/etc/containerd"
	debian      = "disabled_plugins = [\"cri\"]\n#root = \"/var/lib/containerd\"\n" // Docker's package
	dockerUnit  = "[Service]\nExecStart=/usr/bin/dockerd -H fd:// " +
		"--containerd=/run/containerd/containerd.sock\n"
)

var (
	rancherImports = strings.NewReplacer("@SNAPSHOTTER@", "overlayfs",
		"@IMPORTS@", `imports = ["`+rancherDir+`/config-v3.toml.d/*.toml"]`).Replace(rancher)
	rancherPlain = strings.NewReplacer("@SNAPSHOTTER@", "overlayfs", "@IMPORTS@", "").Replace(rancher)
)

// images and transfer are keys of containerd's dump.
func images(key string) string   { return "plugins/" + conf.Images + "/" + key }
func transfer(key string) string { return "plugins/" + conf.Transfer + "/" + key }

// show prints a value of a dump: of the transfer service's list the snapshotters for this machine
// and others.
func show(v any) string {
	list, _ := v.([]any)
	var names []string
	for _, e := range list {
		if entry, ok := e.(conf.Table); ok {
			names = append(names, fmt.Sprint(entry["snapshotter"]))
		}
	}
	if names != nil {
		return strings.Join(names, " ")
	}
	if v == nil {
		v = []any{}
	}
	return fmt.Sprint(v)
}

// rendered writes the configuration that k3s writes for its containerd at its start.
func rendered(t *testing.T, root string) {
	t.Helper()
	path := root + rancherDir + "/config.toml"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	base := string(b)
	if _, err := os.Stat(root + "/etc/rancher/k3s/config.yaml.d/mica.yaml"); err == nil {
		base = strings.Replace(base, `snapshotter = "overlayfs"`, `snapshotter = "mica"`, 1)
	}
	user, err := os.ReadFile(root + rancherDir + "/config-v3.toml.tmpl")
	if errors.Is(err, fs.ErrNotExist) {
		user = []byte(`{{ template "base" . }}`)
	} else if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	tmpl := template.Must(template.New("user").Parse(string(user)))
	template.Must(tmpl.New("base").Parse(base))
	if err := tmpl.Execute(&out, nil); err != nil {
		t.Fatal(err)
	}
	write(t, path, out.String())
}
