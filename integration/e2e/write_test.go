package e2e

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// What a container does to files of every kind, on top of lazily loaded layers.
const changes = `set -e
echo new >/srv/new                            # a new file
echo more >>/etc/services                     # copied up, the whole of it
chmod 600 /etc/hosts.allow 2>/dev/null || chmod 600 /etc/passwd
echo shared >>/srv/links/a                    # copied up: a hard link is broken, as with overlayfs
rm /usr/bin/env                               # whiteout
rm -r /usr/share/zoneinfo && mkdir /usr/share/zoneinfo && echo mine >/usr/share/zoneinfo/mine
mv /srv/links/capable /srv/moved
ln -s /srv/new /srv/symlink
`

const seen = `cat /srv/new; tail -1 /etc/services; stat -c '%a %n' /etc/passwd; cat /srv/links/a /srv/links/b
ls /usr/bin/env /srv/links/capable 2>&1; ls -A /usr/share/zoneinfo; getcap /srv/moved; readlink /srv/symlink; sha256sum /etc/services`

// A container writes to its own layer and nothing but that; the layer is
// committed as a new image, which other nodes run, Mica or not.
func TestWriteAndCommit(t *testing.T) {
	r, ref, _ := debian(t, true)
	n := fixture.Node(t, node.Options{})
	fixture.Pull(t, n, mica, ref)
	before := fixture.Run(t, n, mica, ref, "before", "sh", "-c", seen)

	fixture.Ctr(t, n, "run", "-d", "--net-host", "--snapshotter", mica, ref, "writer", "sleep", "infinity")
	fixture.Ctr(t, n, "tasks", "exec", "--exec-id", "w", "writer", "sh", "-c", changes)
	want := fixture.Ctr(t, n, "tasks", "exec", "--exec-id", "s", "writer", "sh", "-c", seen)
	if !strings.Contains(want, "new\nmore\n") || !strings.Contains(want, "cap_net_bind_service=ep") {
		t.Fatalf("the writer sees\n%s", want)
	}
	if after := fixture.Run(t, n, mica, ref, "after", "sh", "-c", seen); after != before {
		t.Errorf("another container of the image sees the changes:\n%s\nwant\n%s", after, before)
	}

	committed := commit(t, n, "writer", fixture.Debian(t))
	ref2 := fixture.Push(t, r, "committed", committed)
	fixture.Pull(t, n, mica, ref2)
	if got := fixture.Run(t, n, mica, ref2, "again", "sh", "-c", seen); got != want {
		t.Errorf("a container of the committed image sees\n%s\nwant\n%s", got, want)
	}
	plain, _ := fixture.PlainDebian(t)
	fixture.Pull(t, plain, "overlayfs", ref2)
	if got := fixture.Run(t, plain, "overlayfs", ref2, "again", "sh", "-c", seen); got != want {
		t.Errorf("through overlayfs, a container of the committed image sees\n%s\nwant\n%s", got, want)
	}
}

// commit makes an image of base and a container's own layer, by containerd's
// differ, as nerdctl commit does.
func commit(t *testing.T, n *node.Node, container string, base v1.Image) v1.Image {
	t.Helper()
	ctx := namespaces.WithNamespace(fixture.Context(t), n.Namespace())
	client, err := n.Client()
	mustf(t, err, "client")
	ctx, done, err := client.WithLease(ctx) // the blob stays until it is read
	mustf(t, err, "lease")
	defer func() {
		if err := done(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	desc, err := rootfs.CreateDiff(ctx, container, client.SnapshotService(mica), client.DiffService())
	mustf(t, err, "diff")
	blob, err := content.ReadBlob(ctx, client.ContentStore(), desc)
	mustf(t, err, "read the diff")
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(blob)), nil
	}, tarball.WithMediaType(types.OCILayer))
	mustf(t, err, "layer")
	img, err := mutate.AppendLayers(base, layer)
	mustf(t, err, "append the layer")
	return img
}
