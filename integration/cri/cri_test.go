package cri

import (
	"fmt"
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

// start makes a node with the CRI plugin, and a client of it.
func start(t *testing.T, r *registry.Registry) (*node.Node, *Client) {
	t.Helper()
	return Start(t, r, node.Options{CRI: &node.CRI{ByMicad: true}})
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

	pod := StartPod(t, c, "pod1")
	logs, err := c.Output(ctx, pod, ref, "program")
	if err != nil || !strings.HasSuffix(logs, images.Ready+"\n") {
		t.Errorf("%v; the container's log:\n%s\nwant its last line to be %q", err, logs,
			images.Ready)
	}

	id, err := c.Run(ctx, pod, ref, "shell", "sleep", "infinity")
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
		pod := StartPod(t, c, fmt.Sprintf("pod%d", i))
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
	n, c := Start(t, r, node.Options{CRI: settings})
	if _, err := c.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	running, err := c.Run(ctx, StartPod(t, c, "old"), ref, "pause", "/probe", "pause")
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
		id, err := c.Run(ctx, StartPod(t, c, "with-"+to), ref, "probe", "/probe", "echo", "here")
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
