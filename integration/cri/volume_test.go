package cri

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
)

// volumeSize is that of the large file of a volume, bytes.
const volumeSize = 16 << 20

// TestImageVolume: an image that a pod mounts as a volume is lazy. What containers read of it is
// right, a folder of it can be mounted alone, and it goes with the pod.
func TestImageVolume(t *testing.T) {
	ctx := fixture.Context(t)
	r, ref, _ := fixture.ServedDebian(t, true)
	n, c := start(t, r)
	large := make([]byte, volumeSize)
	if _, err := rand.NewChaCha8(sha256.Sum256([]byte(t.Name()))).Read(large); err != nil {
		t.Fatal(err)
	}
	tar, err := images.Tar(images.Dir("model"), images.File("model/weights", 0o644, large),
		images.File("model/name", 0o644, []byte("a model\n")))
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.FromTars(nil, tar)
	if err != nil {
		t.Fatal(err)
	}
	volume := fixture.Push(t, r, "model", img)
	fixture.Index(t, r, "model")
	if _, err := c.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	pod := StartPod(t, c, "pod")
	mounts := len(fixture.LayerMounts(t, n))
	r.ResetTraffic()
	id, err := c.Pull(ctx, volume)
	if err != nil {
		t.Fatal(err)
	}
	with := func(name string, m *runtimeapi.Mount) (container string) {
		t.Helper()
		m.Image, m.Readonly = &runtimeapi.ImageSpec{Image: id}, true
		container, err := c.RunConfig(ctx, pod, &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: ref},
			Command:  []string{"sleep", "infinity"},
			Mounts:   []*runtimeapi.Mount{m},
		})
		if err != nil {
			t.Fatal(err)
		}
		return container
	}
	prints := func(container, script, want string) {
		t.Helper()
		out, err := c.Exec(ctx, container, "sh", "-c", script)
		if err != nil || out != want {
			t.Errorf("%s: %q, %v; want %q", script, out, err, want)
		}
	}
	whole := with("whole", &runtimeapi.Mount{ContainerPath: "/volume"})
	prints(whole, "cat /volume/model/name; ls -A /volume/model", "a model\nname\nweights\n")
	var came int64
	for _, q := range r.Traffic().Requests {
		if strings.Contains(q.Path, "/model/") {
			came += q.Bytes
		}
	}
	if came == 0 || came > volumeSize/20 {
		t.Errorf("%d bytes were downloaded for a small file of an image of %d", came, volumeSize)
	}
	prints(whole, "touch /volume/model/name 2>/dev/null || echo read-only", "read-only\n")
	part := with("part", &runtimeapi.Mount{ContainerPath: "/part", ImageSubPath: "model"})
	prints(part, "sha256sum </part/weights", fmt.Sprintf("%x  -\n", sha256.Sum256(large)))

	out, err := n.Mica(ctx, "images", "--containerd-address", n.Address(), "--namespace", "k8s.io",
		"--address", n.MicadAddress())
	if err != nil || !strings.Contains(out, "pod/part") || !strings.Contains(out, "pod (volume)") {
		t.Errorf("mica images: %v\n%s", err, out)
	}
	if err := c.RemovePod(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{
		Image: &runtimeapi.ImageSpec{Image: volume},
	}); err != nil {
		t.Fatal(err)
	}
	fixture.Freed(t, n, (mounts+1)/2, 64<<20)
}
