package cri

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

func TestMain(m *testing.M) { fixture.Main(m) }

// subnet finds a network of 254 pods that no interface of this machine has.
func subnet(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
next:
	for i := 1; i < 255; i++ {
		candidate := &net.IPNet{IP: net.IPv4(10, 233, byte(i), 0), Mask: net.CIDRMask(24, 32)}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && (n.Contains(candidate.IP) || candidate.Contains(n.IP)) {
				continue next
			}
		}
		return candidate.String()
	}
	t.Fatal("no free network")
	return ""
}

// start makes a node with the CRI plugin, and a client of it.
func start(t *testing.T, r *registry.Registry) (*node.Node, *Client) {
	t.Helper()
	return startWith(t, r, node.Options{CRI: &node.CRI{ByMicad: true}})
}

// startWith is start with these options, but for what all tests need.
func startWith(t *testing.T, r *registry.Registry, opts node.Options) (*node.Node, *Client) {
	t.Helper()
	opts.DemandOnly = true
	opts.CRI.PauseImage = fixture.Push(t, r, "pause", fixture.ProbeImage(t, "pause"))
	opts.CRI.Subnet = subnet(t)
	n := fixture.Node(t, opts)
	if err := n.Trust(r.Host()); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(n, filepath.Join(n.Dir, "pods"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Ready(fixture.Context(t)); err != nil {
		t.Fatal(err)
	}
	return n, c
}

// run starts a pod, which is removed at the test's end at the latest.
func run(t *testing.T, c *Client, name string) *Pod {
	t.Helper()
	pod, err := c.RunPod(fixture.Context(t), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a pod that has been removed may be removed again
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.RemovePod(ctx, pod); err != nil {
			t.Error(err)
		}
	})
	return pod
}

// Pods are lazy on nodes where nothing but the snapshotter's name is set, and CRI pulls by itself,
// not by the transfer service: as kind and EKS set up containerd, and k3s.
func TestLocalPull(t *testing.T) {
	for name, settings := range map[string]string{
		"kind":          "discard_unpacked_layers = true",
		"EKS":           "discard_unpacked_layers = true\nmax_concurrent_downloads = 10",
		"k3s":           "use_local_image_pull = true\ndisable_snapshot_annotations = true",
		"by the switch": "use_local_image_pull = true",
	} {
		t.Run(name, func(t *testing.T) {
			ctx := fixture.Context(t)
			r, ref, size := fixture.ServedDebian(t, true)
			_, c := startWith(t, r, node.Options{Bare: true, CRI: &node.CRI{Images: settings}})
			r.ResetTraffic()
			if _, err := c.Pull(ctx, ref); err != nil {
				t.Fatal(err)
			}
			if got := r.Traffic().Down; got > size/100 {
				t.Errorf("PullImage downloaded %d bytes of an image of %d: more than 1%%", got, size)
			}
			id, err := c.Run(ctx, run(t, c, "pod"), ref, "program")
			if err != nil {
				t.Fatal(err)
			}
			if code, err := c.Wait(ctx, id); err != nil || code != 0 {
				t.Errorf("the image's program: exit code %d, %v", code, err)
			}
		})
	}
}

// A kubelet's whole way with a lazily pulled image: pull, pod, container, logs,
// exec, writes, remove.
func TestPod(t *testing.T) {
	ctx := fixture.Context(t)
	r, ref, size := fixture.ServedDebian(t, true)
	n, c := start(t, r)
	r.ResetTraffic()

	if _, err := c.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	if got := r.Traffic().Down; got > size/100 {
		t.Errorf("PullImage downloaded %d bytes of an image of %d: more than 1%%", got, size)
	}

	pod := run(t, c, "pod1")
	id, err := c.Run(ctx, pod, ref, "program")
	if err != nil {
		t.Fatal(err)
	}
	if code, err := c.Wait(ctx, id); err != nil || code != 0 {
		t.Errorf("the image's program: exit code %d, %v", code, err)
	}
	logs, err := os.ReadFile(filepath.Join(pod.Config.LogDirectory, "program.log"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(logs), " "+images.Ready+"\n") {
		t.Errorf("the container's log:\n%s\nwant its last line to be %q", logs, images.Ready)
	}

	id, err = c.Run(ctx, pod, ref, "shell", "sleep", "infinity")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ script, want string }{
		{"cat /srv/links/a", "one\n"},
		{"echo two >/srv/links/b && cat /srv/links/b && stat -c %h /srv/links/b", "two\n"},
		{"rm -r /usr/share/doc && mkdir /usr/share/doc && ls -A /usr/share/doc", ""},
	} {
		out, err := c.Exec(ctx, id, "sh", "-c", tt.script)
		if err != nil || !strings.HasPrefix(out, tt.want) {
			t.Errorf("%s: %q, %v; want %q", tt.script, out, err, tt.want)
		}
	}
	usage(t, c, id)

	if err := c.RemovePod(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	fixture.Freed(t, n, 1, 16<<20) // the pause image stays
}

// usage checks what the kubelet's accounting sees: bytes of the container's
// own layer, and Mica's file system as that of the images.
func usage(t *testing.T, c *Client, id string) {
	t.Helper()
	ctx := fixture.Context(t)
	fixture.Eventually(t, 20*time.Second, func() string { // containerd collects from time to time
		stats, err := c.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			return err.Error()
		}
		if stats.Stats.WritableLayer.GetUsedBytes().GetValue() == 0 {
			return "the container's writable layer has no size after writes"
		}
		return ""
	})
	info, err := c.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(info.ImageFilesystems) == 0 || !strings.HasSuffix(info.ImageFilesystems[0].FsId.Mountpoint, "/mica") {
		t.Errorf("file system of the images: %v, want micad's root", info.ImageFilesystems)
	}
}

// Pods of one image share its layers, and each has a root of its own.
func TestPodsAreApart(t *testing.T) {
	ctx := fixture.Context(t)
	r, ref, _ := fixture.ServedDebian(t, true)
	_, c := start(t, r)
	if _, err := c.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range 3 {
		pod := run(t, c, fmt.Sprintf("pod%d", i))
		id, err := c.Run(ctx, pod, ref, "shell", "sleep", "infinity")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(ctx, id, "sh", "-c", fmt.Sprintf("echo %d >/etc/mine", i)); err != nil {
			t.Error(err)
		}
		ids = append(ids, id)
	}
	for i, id := range ids {
		out, err := c.Exec(ctx, id, "cat", "/etc/mine")
		if want := fmt.Sprintf("%d\n", i); err != nil || out != want {
			t.Errorf("pod %d reads %q, %v; want %q", i, out, err, want)
		}
	}
}

// TestSwitch: a node's snapshotter is switched from overlayfs to Mica under a pod that runs, and
// back. The pod goes on, and containerd unpacks what it has for the other one, the pause image too,
// when a new pod needs it: by Mica, though the layers have been discarded.
func TestSwitch(t *testing.T) {
	ctx := fixture.Context(t)
	r := fixture.Referrers(t)
	ref := fixture.Push(t, r, "probe", fixture.ProbeImage(t))
	fixture.Index(t, r, "probe")
	settings := &node.CRI{Overlayfs: true, Images: "discard_unpacked_layers = true"}
	n, c := startWith(t, r, node.Options{CRI: settings})
	if _, err := c.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	running, err := c.Run(ctx, run(t, c, "old"), ref, "pause", "/probe", "pause")
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"mica", "overlayfs"} {
		settings.Overlayfs = to == "overlayfs"
		if err := n.RestartContainerd(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		if out, err := c.Exec(ctx, running, "/probe", "echo", "there"); err != nil || out != "there\n" {
			t.Errorf("switched to %s, the pod that ran prints %q, %v", to, out, err)
		}
		id, err := c.Run(ctx, run(t, c, "with-"+to), ref, "probe", "/probe", "echo", "here")
		if err != nil {
			t.Fatalf("switched to %s: %v", to, err)
		}
		if code, err := c.Wait(ctx, id); err != nil || code != 0 {
			t.Errorf("switched to %s, a new container ends with %d, %v", to, code, err)
		}
		if len(fixture.LayerMounts(t, n)) == 0 {
			t.Errorf("switched to %s, micad serves nothing", to)
		}
	}
}
