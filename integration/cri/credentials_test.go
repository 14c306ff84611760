package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
)

// A pod's image pull secret reaches micad with the kubelet's request to pull, and nobody else: the
// image is served lazily by it, also after micad has been killed, and a pull that may not does not
// add to what is kept.
func TestPullSecret(t *testing.T) {
	ctx := fixture.Context(t)
	r, ref, size := fixture.ServedDebian(t, true)
	n, c := start(t, r)
	pod := StartPod(t, c, "pod1") // brings the pause image, which needs no secret
	r.RequireLogin("user", "secret")

	conn, err := grpc.NewClient("unix://"+n.MicadAddress(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	service := runtimeapi.NewImageServiceClient(conn)
	pull := func(auth *runtimeapi.AuthConfig) error {
		_, err := service.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
		return err
	}
	for _, auth := range []*runtimeapi.AuthConfig{nil, {Username: "user", Password: "wrong"}} {
		if err := pull(auth); status.Code(err) == codes.OK {
			t.Errorf("pull with %q succeeds", auth.GetUsername())
		}
	}
	if _, err := os.Stat(filepath.Join(n.MicadRoot(), "credentials", "kept")); err == nil {
		b, _ := os.ReadFile(filepath.Join(n.MicadRoot(), "credentials", "kept"))
		if len(b) > 100 {
			t.Errorf("%d bytes are kept of pulls that failed", len(b))
		}
	}
	r.ResetTraffic()
	if err := pull(&runtimeapi.AuthConfig{Username: "user", Password: "secret"}); err != nil {
		t.Fatal(err)
	}
	if got := r.Traffic().Down; got > size/100 {
		t.Errorf("PullImage downloaded %d bytes of an image of %d: more than 1%%", got, size)
	}
	list, err := service.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 2 {
		t.Errorf("images by way of micad: %v, %v", list.GetImages(), err)
	}
	b, err := os.ReadFile(filepath.Join(n.MicadRoot(), "credentials", "kept"))
	if err != nil || strings.Contains(string(b), "secret") {
		t.Errorf("kept: %v, and the secret in clear: %v", err, strings.Contains(string(b), "secret"))
	}

	n.KillMicad()
	if err := n.StartMicad(ctx); err != nil {
		t.Fatal(err)
	}
	id, err := c.Run(ctx, pod, ref, "program")
	if err != nil {
		t.Fatal(err)
	}
	if code, err := c.Wait(ctx, id); err != nil || code != 0 {
		t.Errorf("the image's program: exit code %d, %v", code, err)
	}
}
