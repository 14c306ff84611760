package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mica-snapshotter/mica/docs/docstest"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// What the pages call the registry and the image of their examples.
const (
	exampleHost = "registry.example.com"
	exampleName = "team/app:1.2"
	example     = exampleHost + "/" + exampleName
)

// runc is runc for machines whose cgroups have no controllers, which ctr wants one of.
const runc = `#!/bin/sh
for arg; do
	if [ -f "$arg/config.json" ]; then sed -i 's/,"cpu":{"shares":1024}//' "$arg/config.json"; fi
done
exec /usr/sbin/runc "$@"
`

// TestDocs runs the blocks that pages mark, as they stand there, each machine's one after another.
// The machine has containerd and systemd; a registry on it stands in for the example's.
func TestDocs(t *testing.T) {
	scripts := map[string]string{}
	for _, b := range blocks(t) {
		if b.Test != "" {
			scripts[b.Test] += fmt.Sprintf("# %s\n%s", b.Where, b.Text)
		}
	}
	var ran sync.Map
	play := func(m *machine, name string) string {
		m.t.Helper()
		ran.Store(name, true)
		return m.run("env", "-i", "HOME=/mnt", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"bash", "-exc", scripts[name])
	}
	t.Run("machines", func(t *testing.T) {
		t.Run("containerd", func(t *testing.T) {
			t.Parallel()
			playContainerd(documented(t), play)
		})
		t.Run("kubeadm", func(t *testing.T) {
			t.Parallel()
			m := documented(t)
			m.run("mica", "index", "create", "--push", example)
			m.write("etc/containerd/config.toml", m.run("containerd", "config", "default"))
			play(m, "kubeadm")
			m.pull()
			m.lazy("k8s.io")
		})
	})
	for name := range scripts {
		if _, ok := ran.LoadAndDelete(name); !ok {
			t.Errorf("nothing runs the blocks that are marked with %q", name)
		}
	}
	ran.Range(func(name, _ any) bool {
		t.Errorf("no block is marked with %q", name)
		return true
	})
}

// playContainerd plays what there is for a node with containerd alone, from setup to removal.
func playContainerd(m *machine, play func(m *machine, name string) string) {
	m.t.Helper()
	play(m, "image")
	if out := play(m, "containerd"); !strings.Contains(out, "has started\n") {
		m.t.Errorf("the container did not run:\n%s", out)
	}
	m.lazy("default")
	play(m, "readme")
	if out := play(m, "operations"); !strings.Contains(out, "NRestarts=0\n") {
		m.t.Errorf("the unit:\n%s", out)
	}
	m.run("ctr", "containers", "rm", "app1")
	m.run("ctr", "images", "rm", "--sync", example)
	play(m, "removal")
	if _, err := os.Stat(m.path("/var/lib/micad")); err == nil {
		m.t.Error("the removal leaves /var/lib/micad")
	}
	if out := m.run("ctr", "plugins", "ls"); strings.Contains(out, "mica") {
		m.t.Errorf("containerd has after the removal\n%s", out)
	}
}

// TestDocsConfigure: containerd knows all that pages have it configured with.
func TestDocsConfigure(t *testing.T) {
	bin, err := node.Binary("containerd")
	if err != nil {
		t.Fatal(err)
	}
	configs := 0
	for _, b := range blocks(t) {
		if !strings.HasPrefix(b.Text, "# /etc/containerd/config.toml\n") {
			continue
		}
		configs++
		path := filepath.Join(t.TempDir(), "config.toml")
		text := b.Text
		if !strings.Contains(text, "\nversion = ") { // a part of one
			text = "version = 3\n" + text
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(bin, "--config", path, "config", "dump").CombinedOutput()
		if err != nil || strings.Contains(string(out), "unknown key") {
			t.Errorf("%s: %v\n%s", b.Where, err, out)
		}
	}
	if configs < 3 {
		t.Errorf("%d configurations", configs)
	}
}

// blocks are those of all pages.
func blocks(t *testing.T) (all []docstest.Block) {
	t.Helper()
	checkout, err := node.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	pages, err := docstest.Read(checkout)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		all = append(all, p.Blocks...)
	}
	return all
}

// documented boots a machine with the programs that the pages take for granted, and an image.
func documented(t *testing.T) *machine {
	t.Helper()
	ctx := fixture.Context(t)
	m := newMachine(t, "/")
	m.prepare()
	installed := makeInstall(t)
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "registry"} {
		bin, err := node.Binary(name)
		if err == nil {
			err = os.Symlink(bin, filepath.Join(installed, "usr/local/bin", name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	err := os.WriteFile(filepath.Join(installed, "usr/local/bin/runc"), []byte(runc), 0o755)
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Distribution(ctx, filepath.Join(m.work, "registry"))
	if err != nil {
		t.Fatal(err)
	}
	pushed := images.Push(ctx, r.Direct()+"/"+exampleName,
		fixture.ProbeImage(t, "echo", "has", "started"))
	if err := r.Close(); pushed != nil || err != nil {
		t.Fatal(pushed, err)
	}
	m.write("etc/containerd/certs.d/"+exampleHost+"/hosts.toml",
		fmt.Sprintf("server = %q\n", "http://"+r.Direct()))
	for _, name := range []string{"hosts", "resolv.conf"} { // containers get them
		m.write("etc/"+name, "")
	}
	unit := func(name, service string) {
		m.write("etc/systemd/system/"+name,
			"[Unit]\nDefaultDependencies=no\n[Service]\n"+
				"StandardError=append:/mnt/others\n"+service)
	}
	unit("registry.service",
		"ExecStart=/usr/local/bin/registry serve "+m.work+"/registry/config.yml\n")
	unit("containerd.service", "Type=notify\nExecStart=/usr/local/bin/containerd\n"+
		"Delegate=yes\nKillMode=process\n")
	m.write("etc/systemd/system/test.target",
		"[Unit]\nDefaultDependencies=no\nWants=registry.service containerd.service\n")
	m.start(installed)
	m.eventually("containerd", func() error {
		_, err := m.tryRun("ctr", "version")
		return err
	})
	m.run("mount", "-t", "tmpfs", "tmpfs", "/opt") // containerd's
	m.run("ip", "link", "set", "lo", "up")
	t.Cleanup(func() {
		if t.Failed() {
			for line := range strings.Lines(m.read(filepath.Join(m.work, "others"))) {
				if !strings.Contains(line, "level=info") {
					t.Log(line)
				}
			}
		}
	})
	return m
}

// pull pulls the example as a kubelet does.
func (m *machine) pull() {
	m.t.Helper()
	conn, err := grpc.NewClient("unix://"+m.path("/run/containerd/containerd.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.fatal(err)
	}
	defer conn.Close()
	_, err = runtimeapi.NewImageServiceClient(conn).PullImage(fixture.Context(m.t),
		&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: example}})
	if err != nil {
		m.fatal(err)
	}
}

// lazy fails where an image of a namespace is not micad's.
func (m *machine) lazy(namespace string) {
	m.t.Helper()
	out := m.run("mica", "images", "--namespace", namespace)
	if !strings.Contains(out, example) || strings.Contains(out, "ordinary") {
		m.fatal(fmt.Errorf("mica images:\n%s", out))
	}
}
