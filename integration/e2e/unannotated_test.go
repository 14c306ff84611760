package e2e

import (
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// A client that knows nothing of lazy pulling names the chain of a layer and no image: containerd's
// content store tells which it is. Nothing but the snapshotter's name is configured.
func TestUnannotated(t *testing.T) {
	r, ref, size := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true, Bare: true})
	mustf(t, n.Trust(r.Host()), "trust")
	client, err := n.Client()
	mustf(t, err, "client")
	ctx := namespaces.WithNamespace(fixture.Context(t), n.Namespace())
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts)),
	})
	_, err = client.Pull(ctx, ref, containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(mica), containerd.WithResolver(resolver))
	mustf(t, err, "pull")
	if got := r.Traffic().Down; got > size/100 {
		t.Errorf("the pull downloaded %d bytes of an image of %d", got, size)
	}
	if out := fixture.Run(t, n, mica, ref, "program"); !strings.HasSuffix(out, images.Ready+"\n") {
		t.Errorf("the program prints %q", out)
	}
	if got := r.Traffic().Down; got > size/2 {
		t.Errorf("until the program was ready %d bytes were downloaded of an image of %d", got, size)
	}
}
