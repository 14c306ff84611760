package clients

import (
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/mica-snapshotter/mica/integration/cri"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// tried is a node with a client that pulls images and runs their program.
type tried struct {
	pull func(ref string) error
	run  func(ref string) (out string, err error)
}

// row is a client of the matrix.
type row struct {
	name  string
	whole bool // it downloads all before it asks a snapshotter
	late  bool // of `make clients` alone, because a test of its own has it
	start func(t *testing.T, r *registry.Registry) tried
}

var matrix = []row{
	{name: "ctr", late: true, start: onNode(node.Options{}, func(
		t *testing.T, n *node.Node, ref string,
	) error {
		return n.Pull(fixture.Context(t), node.Snapshotter, ref)
	})},
	{name: "ctr --local", whole: true, late: true,
		start: onNode(node.Options{Bare: true}, pullLocally)},
	{name: "Go client", start: onNode(node.Options{Bare: true}, pullUnpack)},
	{name: "CRI, transfer service", late: true, start: byCRI(node.Options{CRI: &node.CRI{}})},
	{name: "CRI, own pull", start: byCRI(local("use_local_image_pull = true"))},
	{name: "CRI, kind", start: byCRI(local("discard_unpacked_layers = true"))},
	{name: "CRI, EKS", start: byCRI(local(
		"discard_unpacked_layers = true\nmax_concurrent_downloads = 10"))},
	{name: "CRI, k3s", start: byCRI(node.Options{CRI: &node.CRI{K3s: true}})},
}

// local are the options of a node where CRI pulls by itself, because of these settings, and
// nothing but micad's name and address is configured.
func local(settings string) node.Options {
	return node.Options{Bare: true, CRI: &node.CRI{Images: settings}}
}

// byCRI starts a node whose client is the kubelet.
func byCRI(opts node.Options) func(*testing.T, *registry.Registry) tried {
	return func(t *testing.T, r *registry.Registry) tried {
		t.Helper()
		own := *opts.CRI
		opts.CRI = &own
		_, c := cri.Start(t, r, opts)
		pod := cri.StartPod(t, c, "pod") // brings the pause image
		return tried{
			pull: func(ref string) error {
				_, err := c.Pull(fixture.Context(t), ref)
				return err
			},
			run: func(ref string) (string, error) {
				return c.Output(fixture.Context(t), pod, ref, "program")
			},
		}
	}
}

// onNode starts a node whose images are pulled like this and run by ctr.
func onNode(
	opts node.Options, pull func(*testing.T, *node.Node, string) error,
) func(*testing.T, *registry.Registry) tried {
	return func(t *testing.T, r *registry.Registry) tried {
		t.Helper()
		opts.DemandOnly = true
		n := fixture.Node(t, opts)
		mustf(t, n.Trust(r.Host()), "trust")
		return tried{
			pull: func(ref string) error { return pull(t, n, ref) },
			run: func(ref string) (string, error) {
				return n.Run(fixture.Context(t), node.Snapshotter, ref, "program")
			},
		}
	}
}

// pullLocally pulls by ctr itself.
func pullLocally(t *testing.T, n *node.Node, ref string) error {
	t.Helper()
	_, err := n.Ctr(fixture.Context(t), "images", "pull", "--local", "--plain-http",
		"--snapshotter", node.Snapshotter, ref)
	return err
}

// pullUnpack pulls as a Go program does that knows nothing of lazy pulling.
func pullUnpack(t *testing.T, n *node.Node, ref string) error {
	t.Helper()
	c, err := n.Client()
	if err != nil {
		return err
	}
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts)),
	})
	_, err = c.Pull(namespaces.WithNamespace(fixture.Context(t), n.Namespace()), ref,
		containerd.WithPullUnpack, containerd.WithPullSnapshotter(node.Snapshotter),
		containerd.WithResolver(resolver))
	return err
}

// TestClients: before an image's program runs, each client has downloaded next to nothing of the
// image, and then the program prints what it prints on overlayfs.
func TestClients(t *testing.T) {
	plain, plainRef := fixture.PlainDebian(t)
	want := fixture.Run(t, plain, "overlayfs", plainRef, "plainly")
	r, ref, size := fixture.ServedDebian(t, true)
	x := &table{r: r, size: size}
	for _, c := range matrix {
		if c.late && !*update {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			x.t = t
			n := c.start(t, r)
			part := x.try(c.name+": pull", func() error { return n.pull(ref) })
			if part > 0.01 && !c.whole || part < 0.9 && c.whole {
				t.Errorf("the pull downloaded %.3f of the image", part)
			}
			part = x.try(c.name+": run", func() error {
				got, err := n.run(ref)
				if err == nil && got != want {
					t.Errorf("the program prints\n%s\nand by overlayfs\n%s", got, want)
				}
				return err
			})
			if part > 0.5 {
				t.Errorf("until the program was ready %.3f of the image was downloaded", part)
			}
		})
	}
	x.t = t
	x.write("clients")
}
