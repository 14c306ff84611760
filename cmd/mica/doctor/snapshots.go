package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

const (
	// snapshotsPatience bounds what is asked of containerd.
	snapshotsPatience = 20 * time.Second
	// maxDepth is how many descriptors lie between an image's name and its configuration at most:
	// two indexes and a manifest.
	maxDepth = 3

	// micadStat is in the error of a snapshot that containerd knows and micad does not.
	micadStat = "stat snapshot "
	// contentLabel begins the labels of containerd's content that name what a blob refers to.
	contentLabel = "containerd.io/gc.ref.content"
)

// SnapshotLabel begins the labels that containerd gives to an image's configuration. The
// snapshotter's name follows; the value is the snapshot that the image was unpacked to.
const SnapshotLabel = "containerd.io/gc.ref.snapshot."

// lost is what containerd has in a namespace, by one of micad's plugins, of which micad has no
// snapshot.
type lost struct {
	namespace, plugin string

	refs      []string        // of images that containerd takes for unpacked, sorted
	configs   []digest.Digest // of these, and of images that have no name any more
	snapshots []string        // of these images, containers and leases
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
func checkSnapshots(ctx context.Context, f *Findings, o Options) {
	all, err := eachLost(ctx, o, nil)
	switch {
	case err != nil:
		f.warning("snapshots", "containerd is not asked for its snapshots: "+err.Error(), "")
	case len(all) == 0:
		f.ok("snapshots", "micad has what containerd takes for unpacked")
	}
	for _, l := range all {
		f.failure("snapshots", l.detail(), l.fix())
	}
}

func (l lost) detail() string {
	return fmt.Sprintf("in namespace %s containerd takes %d images for unpacked, and has %d "+
		"snapshots, that micad does not have: its root was lost or is another one; "+
		"pulls of such images say \"already exists\" (plugin %s)", l.namespace, len(l.refs),
		len(l.snapshots), l.plugin)
}

func (l lost) fix() string {
	var b strings.Builder
	b.WriteString("If the root is lost for good, have containerd forget them, the files of these " +
		"containers included:\nmica doctor --forget\n")
	if l.namespace == "k8s.io" {
		b.WriteString("(the kubelet pulls the images again, and starts the containers anew)")
		return b.String()
	}
	if l.plugin == conf.Alias {
		b.WriteString("Then empty BuildKit's cache (docker builder prune --all, or buildctl prune " +
			"--all), and pull and build again.\n")
		return b.String()
	}
	for _, ref := range l.refs {
		if !strings.Contains(ref, "@sha256:") || len(l.refs) == 1 {
			fmt.Fprintf(&b, "mica pull -n %s %s\n", l.namespace, ref)
		}
	}
	return b.String()
}

// Forget has the containerd of a configuration forget what micad has lost: names of images, and
// snapshots of containers and leases. containerd's collector takes what these referred to. The
// findings say what is forgotten.
func Forget(ctx context.Context, o Options) (Findings, error) {
	var f Findings
	all, err := eachLost(ctx, o, func(ctx context.Context, c *containerd.Client, l lost) error {
		for _, ref := range l.refs {
			if err := c.ImageService().Delete(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		err := l.release(ctx, c)
		if err == nil {
			err = collect(ctx, c)
		}
		f.ok("forgotten", fmt.Sprintf("in namespace %s: %d images, %d snapshots (plugin %s)",
			l.namespace, len(l.refs), len(l.snapshots), l.plugin))
		return err
	})
	if err == nil && len(all) == 0 {
		f.ok("forgotten", "nothing: micad has what containerd takes for unpacked")
	}
	return f, err
}

// release takes away all references to the snapshots. Snapshots that leases refer to are left to
// containerd's collector, because it leaves those that it collects on them as their children, for
// which containerd then refuses to remove them.
func (l lost) release(ctx context.Context, c *containerd.Client) error {
	label := SnapshotLabel + l.plugin
	for _, config := range l.configs {
		_, err := c.ContentStore().Update(ctx, content.Info{
			Digest: config, Labels: map[string]string{label: ""}}, "labels."+label)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	err := leased(ctx, c, l.plugin, func(lease leases.Lease, r leases.Resource) error {
		if !slices.Contains(l.snapshots, r.ID) {
			return nil
		}
		return c.LeasesService().DeleteResource(ctx, lease, r)
	})
	for _, key := range l.snapshots { // those of containers
		removeErr := c.SnapshotService(l.plugin).Remove(ctx, key)
		if !errdefs.IsNotFound(removeErr) && !errdefs.IsFailedPrecondition(removeErr) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}

// collect has containerd's collector run.
func collect(ctx context.Context, c *containerd.Client) error {
	lease, err := c.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return c.LeasesService().Delete(ctx, lease, leases.SynchronousDelete) // awaits the collection
}

// eachLost asks containerd what of it micad has lost, calls do, if not nil, with what there is of
// each namespace and plugin, and returns that.
func eachLost(
	ctx context.Context, o Options,
	do func(ctx context.Context, c *containerd.Client, l lost) error,
) ([]lost, error) {
	parsed, err := loadContainerd(o.Config)
	if err != nil {
		return nil, err
	}
	var info admin.Info
	if err := o.Micad.Get(ctx, admin.PathInfo, &info); err != nil {
		return nil, err
	}
	address := parsed.socket()
	if _, err := os.Stat(address); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotsPatience)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client, err := containerd.NewWithConn(conn)
	if err != nil {
		return nil, err
	}
	names, err := client.NamespaceService().List(ctx)
	if err != nil {
		return nil, err
	}
	var all []lost
	for _, name := range names {
		ctx := namespaces.WithNamespace(ctx, name)
		for _, plugin := range parsed.names(info) {
			l := lost{namespace: name, plugin: plugin}
			err := l.find(ctx, client)
			if err == nil && len(l.refs)+len(l.snapshots) > 0 {
				all = append(all, l)
				if do != nil {
					err = do(ctx, client, l)
				}
			}
			if err != nil {
				return nil, fmt.Errorf("namespace %s: %w", name, err)
			}
		}
	}
	return all, nil
}

// find finds what is lost by a plugin in the context's namespace.
func (l *lost) find(ctx context.Context, c *containerd.Client) error {
	gone := func(key string) (bool, error) {
		_, err := c.SnapshotService(l.plugin).Stat(ctx, key)
		if errdefs.IsNotFound(err) { // of what containerd itself does not know micad is not asked
			return strings.Contains(err.Error(), micadStat), nil
		}
		return false, err
	}
	store := c.ContentStore()
	label := SnapshotLabel + l.plugin
	unpacked := map[digest.Digest]string{} // chain IDs by the configuration's digest
	err := store.Walk(ctx, func(i content.Info) error {
		unpacked[i.Digest] = i.Labels[label]
		return nil
	}, `labels."`+label+`"`)
	if err != nil {
		return err
	}
	configs := map[digest.Digest]bool{}
	for config, chain := range unpacked {
		if configs[config], err = gone(chain); err != nil {
			return err
		}
		if configs[config] {
			l.configs = append(l.configs, config)
			l.snapshots = append(l.snapshots, chain)
		}
	}
	images, err := c.ImageService().List(ctx)
	if err != nil {
		return err
	}
	for _, i := range images {
		if leads(ctx, store, i.Target.Digest, configs, maxDepth) {
			l.refs = append(l.refs, i.Name)
		}
	}
	slices.Sort(l.refs)
	keys, err := held(ctx, c, l.plugin)
	for _, key := range keys {
		is, statErr := gone(key)
		if statErr != nil {
			return statErr
		}
		if is && !slices.Contains(l.snapshots, key) {
			l.snapshots = append(l.snapshots, key)
		}
	}
	return err
}

// held returns the snapshots of containers and of leases by a plugin.
func held(ctx context.Context, c *containerd.Client, plugin string) (keys []string, err error) {
	containers, err := c.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range containers {
		if x.Snapshotter == plugin && x.SnapshotKey != "" {
			keys = append(keys, x.SnapshotKey)
		}
	}
	err = leased(ctx, c, plugin, func(_ leases.Lease, r leases.Resource) error {
		if !slices.Contains(keys, r.ID) {
			keys = append(keys, r.ID)
		}
		return nil
	})
	return keys, err
}

// leased calls do with the snapshots of leases by a plugin.
func leased(
	ctx context.Context, c *containerd.Client, plugin string,
	do func(leases.Lease, leases.Resource) error,
) error {
	all, err := c.LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, x := range all {
		resources, err := c.LeasesService().ListResources(ctx, x)
		if err != nil && !errdefs.IsNotFound(err) { // a lease may end meanwhile
			return err
		}
		for _, r := range resources {
			if r.Type != "snapshots/"+plugin {
				continue
			}
			if err := do(x, r); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
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
