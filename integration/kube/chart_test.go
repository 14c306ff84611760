//go:build kube

package kube

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/mica-snapshotter/mica/integration/cri"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// socket is that of this machine's containerd.
const socket = "/run/containerd/containerd.sock"

// TestChart has Helm install Mica on a node, and take it away. Pods are lazy in between, and read
// what is right; afterwards they are not lazy. The node is this machine: script/test.sh gives it
// folders that go with the test.
func TestChart(t *testing.T) {
	c := newCluster(t)
	r := fixture.Referrers(t)
	first, _ := dataImage(t, r, "first", true)
	app, digest := dataImage(t, r, "app", true)
	last, _ := dataImage(t, r, "last", true)
	c.write("values.yaml", fmt.Appendf(nil, `distribution: containerd
config: |
  [fetch]
  fill = "none"
image: {repository: %s, tag: test}
`, strings.TrimSuffix(release(t, r), ":test")))
	containerd := newContainerd(c, fixture.Push(t, r, "pause", fixture.ProbeImage(t, "pause")), r)
	c.kubelet(kubelet{runtime: socket, images: socket, dir: "/var/lib/kubelet", cgroup: "mica-chart"},
		c.kubeconfig("kubelet", "system:node:"+nodeName, "system:nodes"))
	c.start("micad", accepts("/run/micad/micad.sock"), "keep") // as at a boot without systemd
	starts := func(name, ref string) (downloaded int64) {
		t.Helper()
		r.ResetTraffic()
		c.run(t, name, corev1.PodSpec{HostNetwork: true, Containers: []corev1.Container{{
			Name: "app", Image: ref, Command: []string{"/probe", "pause"},
		}}})
		c.running(t, name)
		return r.Traffic().Down
	}
	if got := starts("first", first); got < large {
		t.Errorf("without Mica %d bytes were downloaded of %d", got, large)
	}

	chart := filepath.Join(checkout(t), "script", "chart")
	c.helm("install", "mica", chart, "--create-namespace", "-f", c.path("values.yaml"))
	c.says("install", "Restart containerd")
	containerd.restart()
	c.rolledOut()
	if got := starts("app", app); got > large/2 {
		t.Errorf("with Mica %d bytes were downloaded of %d", got, large)
	}
	c.run(t, "reader", corev1.PodSpec{HostNetwork: true, Containers: []corev1.Container{{
		Name: "app", Image: app, Command: []string{"/probe", "show", "/data/large"},
	}}})
	if log := c.ended(t, "reader"); !strings.Contains(log, digest) {
		t.Errorf("read %q, not %s", log, digest)
	}

	c.helm("upgrade", "mica", chart, "--reuse-values", "--set", "remove=true")
	c.says("remove", "Restart containerd")
	containerd.restart()
	c.says("remove", "waiting for the end of containers that Mica serves: ")
	if got := starts("last", last); got < large {
		t.Errorf("after Mica %d bytes were downloaded of %d", got, large)
	}
	c.remove(t, "reader")
	c.remove(t, "app")
	c.rolledOut()
	c.helm("uninstall", "mica", "--wait")
	for _, path := range []string{"/usr/local/bin/micad", "/etc/containerd/conf.d/mica.toml"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
}

// release pushes an image like the release's, and returns its reference.
func release(t *testing.T, r *registry.Registry) string {
	t.Helper()
	entries := []images.Entry{}
	for _, path := range []string{"bin/mica", "bin/micad"} {
		b, err := os.ReadFile(filepath.Join(checkout(t), path))
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, images.File("usr/"+path, 0o755, b))
	}
	tar, err := images.Tar(entries...)
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.FromTars(nil, tar)
	if err == nil {
		img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/usr/bin/mica"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return fixture.Push(t, r, "mica", img)
}

func checkout(t *testing.T) string {
	t.Helper()
	dir, err := node.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// machine is this machine's containerd, where containerd is by default.
type machine struct {
	c *cluster
	p *node.Process
}

// newContainerd configures and starts it.
func newContainerd(c *cluster, pause string, r *registry.Registry) *machine {
	c.t.Helper()
	subnet, err := cri.Subnet()
	if err != nil {
		c.t.Fatal(err)
	}
	for path, text := range map[string]string{
		"/etc/containerd/config.toml": fmt.Sprintf(`version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/lib/cni']
`, pause),
		"/etc/containerd/certs.d/" + r.Host() + "/hosts.toml": fmt.Sprintf("server = \"http://%s\"\n",
			r.Host()),
		"/etc/cni/net.d/10-test.conflist": fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "test",
"plugins": [{"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]]}}]}`,
			subnet),
	} {
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	m := &machine{c: c}
	m.start()
	return m
}

func (m *machine) start() {
	m.c.t.Helper()
	m.p = m.c.start("containerd", accepts(socket))
}

// accepts is nil where somebody listens at a socket.
func accepts(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func (m *machine) restart() {
	m.c.t.Helper()
	if err := m.p.Stop(); err != nil {
		m.c.t.Fatal(err)
	}
	m.start()
}

// helm runs Helm for the release's namespace.
func (c *cluster) helm(args ...string) {
	c.t.Helper()
	bin, err := node.Binary("helm")
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.CommandContext(c.t.Context(), bin, append(args, "--namespace", "mica", "--kubeconfig",
		c.kubeconfig("helm", "helm", "system:masters"))...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("helm %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// says waits until the first container of the chart's pod, which does what its name says, has
// logged a line.
func (c *cluster) says(do, line string) {
	c.t.Helper()
	eventually(c.t, time.Minute, func() error {
		var list corev1.PodList
		const pods = "/api/v1/namespaces/mica/pods"
		if err := c.get(pods, &list); err != nil {
			return err
		}
		for _, pod := range list.Items {
			if pod.Spec.InitContainers[0].Name != do {
				continue
			}
			var log string
			if err := c.get(pods+"/"+pod.Name+"/log?container="+do, &log); err != nil {
				return err
			}
			if strings.Contains(log, line) {
				return nil
			}
			return fmt.Errorf("%s has said %q, not %q: %+v", do, log, line,
				pod.Status.InitContainerStatuses)
		}
		return fmt.Errorf("%d pods, and none to %s", len(list.Items), do)
	})
}

// rolledOut waits until the chart's pod is ready.
func (c *cluster) rolledOut() {
	c.t.Helper()
	eventually(c.t, 2*time.Minute, func() error {
		var set appsv1.DaemonSet
		if err := c.get("/apis/apps/v1/namespaces/mica/daemonsets/mica", &set); err != nil {
			return err
		}
		if s := set.Status; s.ObservedGeneration != set.Generation ||
			s.UpdatedNumberScheduled != 1 || s.NumberReady != 1 {
			var list corev1.PodList
			if err := c.get("/api/v1/namespaces/mica/pods", &list); err != nil {
				return err
			}
			err := fmt.Errorf("the chart's pods: %+v", s)
			for _, pod := range list.Items {
				err = fmt.Errorf("%w; %s: %+v", err, pod.Name, pod.Status.ContainerStatuses)
			}
			return err
		}
		return nil
	})
}
