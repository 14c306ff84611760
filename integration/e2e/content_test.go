package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// export writes an image into an archive and returns its bytes. By the transfer service ctr may end
// before all has come.
func export(t *testing.T, n *node.Node, ref string) []byte {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "image.tar")
	fixture.Ctr(t, n, "images", "export", "--local", archive, ref)
	b, err := os.ReadFile(archive)
	mustf(t, err, "archive")
	return b
}

// runs runs an image's program.
func runs(t *testing.T, n *node.Node, snapshotter, ref, id string) {
	t.Helper()
	out := fixture.Run(t, n, snapshotter, ref, id)
	if !strings.HasSuffix(out, images.Ready+"\n") {
		t.Errorf("%s: by %s the program prints %q", id, snapshotter, out)
	}
}

// TestContent: with micad as content plugin an image of which little is here is a whole one for all
// that reads blobs.
func TestContent(t *testing.T) {
	r, ref, size := debian(t, true)
	// a node of its own, because an archive names where its blobs have come from
	plain := fixture.Node(t, node.Options{NoMicad: true})
	fixture.Pull(t, plain, "overlayfs", ref)
	want := export(t, plain, ref)
	r.ResetTraffic()

	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true})
	fixture.Pull(t, n, mica, ref)
	if got := r.Traffic().Down; got > size/100 {
		t.Errorf("the pull downloaded %d bytes of an image of %d", got, size)
	}
	mustf(t, n.StopMicad(), "stop micad") // what it has told containerd it knows later
	mustf(t, n.StartMicad(fixture.Context(t)), "start micad")
	if got := export(t, n, ref); !bytes.Equal(got, want) {
		t.Errorf("the archive has %d bytes and differs from overlayfs's of %d", len(got), len(want))
	}
	if got := r.Traffic().Down; got < size*9/10 || got > size*11/10 {
		t.Errorf("%d bytes were downloaded to export an image of %d", got, size)
	}

	// what shares the layers needs nothing
	r.ResetTraffic()
	fixture.Pull(t, n, "overlayfs", ref)
	if got := r.Traffic().Down; got > size/100 {
		t.Errorf("overlayfs downloaded %d bytes of what is here", got)
	}
	runs(t, n, "overlayfs", ref, "plain")

	// and what nobody refers to any more is forgotten
	fixture.Ctr(t, n, "images", "rm", "--sync", ref)
	blobs := filepath.Join(n.ContentRoot(), "blobs/sha256")
	fixture.Eventually(t, 20*time.Second, func() string {
		left, err := os.ReadDir(blobs)
		mustf(t, err, "content")
		if len(left) > 0 {
			return fmt.Sprintf("%d blobs are left", len(left))
		}
		return ""
	})
}

// TestContentPush: a push moves what the other registry does not have.
func TestContentPush(t *testing.T) {
	r, ref, size := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true})
	fixture.Pull(t, n, mica, ref)
	r.ResetTraffic()
	fixture.Ctr(t, n, "images", "push", "--plain-http", r.Host()+"/team/debian:test", ref)
	if got := r.Traffic().BlobBytes(); got > size/100 {
		t.Errorf("%d bytes were downloaded for the registry that they came from", got)
	}
	to := fixture.Referrers(t).Host() + "/other/debian:test"
	fixture.Ctr(t, n, "images", "push", "--plain-http", to, ref)
	plain := fixture.Node(t, node.Options{NoMicad: true})
	fixture.Pull(t, plain, "overlayfs", to)
	runs(t, plain, "overlayfs", to, "pushed")
}

// TestContentFetchAll: a client that wants all blobs of an image, as Docker does, gets them told.
func TestContentFetchAll(t *testing.T) {
	r, ref, size := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true})
	hears(t, n)
	client, err := n.Client()
	mustf(t, err, "client")
	ctx := namespaces.WithNamespace(fixture.Context(t), n.Namespace())
	mustf(t, n.Trust(r.Host()), "trust")
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts)),
	})
	_, err = client.Pull(ctx, ref, containerd.WithPullUnpack, containerd.WithPullSnapshotter(mica),
		containerd.WithUnpackOpts([]containerd.UnpackOpt{containerd.WithUnpackFetchAllContent()}),
		containerd.WithResolver(resolver))
	mustf(t, err, "pull")
	if got := r.Traffic().Down; got > size/100 {
		t.Errorf("the pull downloaded %d bytes of an image of %d", got, size)
	}
	runs(t, n, mica, ref, "program")
	fixture.Ctr(t, n, "images", "check", "name=="+ref)
	export(t, n, ref)

	// what a client writes in one piece fits into a message
	large := bytes.Repeat([]byte("large"), 3<<20)
	mustf(t, content.WriteBlob(ctx, client.ContentStore(), "large", bytes.NewReader(large),
		ocispec.Descriptor{Digest: digest.FromBytes(large), Size: int64(len(large))}), "write")
}

// TestContentAway: a blob that cannot be had is a clear error, and works when the registry is back.
func TestContentAway(t *testing.T) {
	r := fixture.Registry(t)
	ref := fixture.Push(t, r, "away", fixture.ProbeImage(t))
	fixture.Index(t, r, "away")
	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true, Micad: `pull_deadline = "3s"`})
	fixture.Pull(t, n, mica, ref)
	mustf(t, r.Down(), "stop the registry")
	archive := filepath.Join(t.TempDir(), "image.tar")
	out, err := n.Ctr(fixture.Context(t), "images", "export", "--local", archive, ref)
	if err == nil || !strings.Contains(out+err.Error(), "tried again when the blob is read again") {
		t.Errorf("without a registry the export says %v: %s", err, out)
	}
	mustf(t, r.Up(), "start the registry")
	export(t, n, ref)
}

// TestContentOff: when containerd keeps its content itself again, it knows what it does not have.
func TestContentOff(t *testing.T) {
	r, ref, size := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true})
	fixture.Pull(t, n, mica, ref)
	runs(t, n, mica, ref, "with")
	n.SwitchContent(false)
	restart(t, n)
	r.ResetTraffic()
	fixture.Eventually(t, 20*time.Second, func() string {
		if out := fixture.Ctr(t, n, "content", "ls", "-q"); len(strings.Fields(out)) > 4 {
			return "containerd believes to have\n" + out
		}
		return ""
	})
	runs(t, n, mica, ref, "without")
	fixture.Pull(t, n, "overlayfs", ref)
	runs(t, n, "overlayfs", ref, "plain")
	if got := r.Traffic().Down; got < size*8/10 {
		t.Errorf("%d bytes of an image of %d were downloaded: from where has it the rest?", got, size)
	}
	n.SwitchContent(true) // and back: containerd's own files are as they were
	restart(t, n)
	r.ResetTraffic()
	export(t, n, ref)
	if got := r.Traffic().BlobBytes(); got > 0 {
		t.Errorf("%d bytes were downloaded for blobs that were here", got)
	}
}

// restart stops and starts both daemons.
func restart(t *testing.T, n *node.Node) {
	t.Helper()
	mustf(t, n.StopContainerd(), "stop containerd")
	mustf(t, n.StopMicad(), "stop micad")
	mustf(t, n.StartMicad(fixture.Context(t)), "start micad")
	mustf(t, n.StartContainerd(fixture.Context(t)), "start containerd")
}
