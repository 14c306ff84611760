package doctor

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	// snapshotsPatience bounds what is asked of containerd.
	snapshotsPatience = 20 * time.Second
	// maxDepth is how many descriptors lie between an image's name and its configuration at most:
	// two indexes and a manifest.
	maxDepth = 3

	// contentLabel begins the labels of containerd's content that name what a blob refers to.
	contentLabel  = "containerd.io/gc.ref.content"
	snapshotLabel = SnapshotLabel + "mica"
)

// SnapshotLabel begins the labels that containerd gives to an image's configuration. The
// snapshotter's name follows; the value is the snapshot that the image was unpacked to.
const SnapshotLabel = "containerd.io/gc.ref.snapshot."

// lostImages are images of a namespace that containerd takes for unpacked, of which micad has no
// snapshot.
type lostImages struct {
	namespace string
	refs      []string // sorted
}

// socket is where containerd listens.
func (c containerdConfig) socket() string {
	for _, keys := range [][]string{{"plugins", "io.containerd.server.v1.grpc"}, {"grpc"}} {
		if s, ok := c.at(append(slices.Clone(keys), "address")...).(string); ok && s != "" {
			return s
		}
	}
	return defaults.DefaultAddress
}

// checkSnapshots compares what containerd takes for unpacked with what micad has: a root that was
// lost or exchanged leaves containerd with names of snapshots that are not there.
func checkSnapshots(ctx context.Context, f *Findings, config string) {
	c, err := loadContainerd(config)
	if err != nil {
		return // told already
	}
	address := c.socket()
	if _, err := os.Stat(address); err != nil {
		f.warning("snapshots", "containerd is not asked for its snapshots: "+err.Error(), "")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotsPatience)
	defer cancel()
	lost, err := findLost(ctx, address)
	switch {
	case err != nil:
		f.warning("snapshots", "containerd is not asked for its snapshots: "+err.Error(), "")
	case len(lost) == 0:
		f.ok("snapshots", "micad has what containerd takes for unpacked")
	}
	for _, l := range lost {
		f.failure("snapshots", l.detail(), l.fix())
	}
}

func (l lostImages) detail() string {
	return fmt.Sprintf("in namespace %s containerd takes %d images for unpacked whose snapshots "+
		"micad does not have: its root was lost or is another one; pulls of them say \"already exists\"",
		l.namespace, len(l.refs))
}

func (l lostImages) fix() string {
	var b strings.Builder
	b.WriteString("Remove the containers of these images, whose files are lost, then the images, " +
		"and pull " +
		"them again:\n")
	fmt.Fprintf(&b, "ctr -n %s images rm --sync %s\n", l.namespace, strings.Join(l.refs, " "))
	if l.namespace == "k8s.io" {
		b.WriteString("(the kubelet pulls them again when pods need them)")
		return b.String()
	}
	for _, ref := range l.refs {
		if !strings.Contains(ref, "@sha256:") || len(l.refs) == 1 {
			fmt.Fprintf(&b, "ctr -n %s images pull --snapshotter mica %s\n", l.namespace, ref)
		}
	}
	return b.String()
}

// findLost asks the containerd at address.
func findLost(ctx context.Context, address string) ([]lostImages, error) {
	conn, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	all, err := namespacesapi.NewNamespacesClient(conn).List(ctx,
		&namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, err
	}
	var lost []lostImages
	for _, ns := range all.Namespaces {
		refs, err := lostOf(namespaces.WithNamespace(ctx, ns.Name), conn)
		if err != nil {
			return nil, fmt.Errorf("namespace %s: %w", ns.Name, err)
		}
		if len(refs) > 0 {
			lost = append(lost, lostImages{ns.Name, refs})
		}
	}
	return lost, nil
}

// lostOf returns the images of the context's namespace.
func lostOf(ctx context.Context, conn *grpc.ClientConn) ([]string, error) {
	store := proxy.NewContentStore(conn)
	snapshots := snapshotsapi.NewSnapshotsClient(conn)
	unpacked := map[digest.Digest]string{} // chain IDs by the configuration's digest
	err := store.Walk(ctx, func(i content.Info) error {
		unpacked[i.Digest] = i.Labels[snapshotLabel]
		return nil
	}, `labels."`+snapshotLabel+`"`)
	if err != nil {
		return nil, err
	}
	lost := map[digest.Digest]bool{}
	for config, chain := range unpacked {
		_, err := snapshots.Stat(ctx,
			&snapshotsapi.StatSnapshotRequest{Snapshotter: "mica", Key: chain})
		switch status.Code(err) {
		case codes.OK:
		case codes.NotFound:
			lost[config] = true
		default:
			return nil, err
		}
	}
	if len(lost) == 0 {
		return nil, nil
	}
	images, err := imagesapi.NewImagesClient(conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	var refs []string
	for _, i := range images.Images {
		if i.Target != nil && leads(ctx, store, digest.Digest(i.Target.Digest), lost, maxDepth) {
			refs = append(refs, i.Name)
		}
	}
	slices.Sort(refs)
	return refs, nil
}

// leads says whether a blob, or one that it refers to, is one of those.
func leads(
	ctx context.Context, s content.Store, d digest.Digest, to map[digest.Digest]bool, depth int,
) bool {
	if to[d] || depth == 0 {
		return to[d]
	}
	info, err := s.Info(ctx, d)
	if err != nil {
		return false // it is not here, as those of other platforms
	}
	for label, child := range info.Labels {
		if strings.HasPrefix(label, contentLabel) &&
			leads(ctx, s, digest.Digest(child), to, depth-1) {
			return true
		}
	}
	return false
}
