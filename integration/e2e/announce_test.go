package e2e

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// micad hears of a pull from a repository that containerd knows before it is asked for a layer:
// containerd gets the image's configuration only after micad has looked for its index, and has it.
func TestAnnounced(t *testing.T) {
	r, ref, _ := debian(t, true)
	config := debianConfig(t)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	hears(t, n)
	client, err := n.Client()
	mustf(t, err, "client")
	repository, _, _ := strings.Cut(ref, "@")
	ctx := namespaces.WithNamespace(fixture.Context(t), n.Namespace())
	_, err = client.ImageService().Create(ctx,
		coreimages.Image{
			Name: repository[:strings.LastIndex(repository, ":")] + ":earlier",
			Target: ocispec.Descriptor{
				MediaType: ocispec.MediaTypeImageManifest,
				Digest:    digest.FromString("earlier"), Size: 1,
			},
		})
	mustf(t, err, "name an image")
	looked := make(chan struct{})
	once := sync.OnceFunc(func() { time.AfterFunc(500*time.Millisecond, func() { close(looked) }) })
	r.SetRule(func(q *http.Request, _ int64) registry.Fault {
		switch {
		case strings.HasPrefix(q.UserAgent(), "micad/"):
			once()
		case strings.HasSuffix(q.URL.Path, config):
			return registry.Fault{Hold: looked}
		}
		return registry.Fault{}
	})
	start := time.Now()
	fixture.Pull(t, n, mica, ref)
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("the pull took %v", took)
	}
	if out := fixture.Run(t, n, mica, ref, "program"); !strings.HasSuffix(out, images.Ready+"\n") {
		t.Errorf("the program prints %q", out)
	}
}

// hears waits until micad hears of pulls.
func hears(t *testing.T, n *node.Node) {
	t.Helper()
	fixture.Eventually(t, 20*time.Second, func() string {
		b, err := os.ReadFile(n.Log("micad"))
		if err != nil || !strings.Contains(string(b), "containerd tells of pulls") {
			return "micad does not hear of pulls"
		}
		return ""
	})
}

// micad does not listen where it is told that there is no containerd for it.
func TestNotAnnounced(t *testing.T) {
	r, ref, _ := debian(t, true)
	config := debianConfig(t)
	n := fixture.Node(t, node.Options{DemandOnly: true, Micad: `containerd_address = "none"`})
	var configured, early atomic.Bool
	r.SetRule(func(q *http.Request, _ int64) registry.Fault {
		switch {
		case strings.HasPrefix(q.UserAgent(), "micad/") && !configured.Load():
			early.Store(true)
		case strings.HasSuffix(q.URL.Path, config):
			configured.Store(true)
		}
		return registry.Fault{}
	})
	time.Sleep(2 * time.Second) // it would have connected to containerd by then
	fixture.Pull(t, n, mica, ref)
	if early.Load() {
		t.Error("micad has looked for the index before it was asked for a layer")
	}
}

// debianConfig is the end of the path at which the Debian image's configuration is.
func debianConfig(t *testing.T) string {
	t.Helper()
	config, err := fixture.Debian(t).ConfigName()
	mustf(t, err, "config")
	return "/blobs/" + config.String()
}

// An image that another process than containerd pulls, as dockerd does, is looked for at the port
// that it is pulled from if that is known, else not before its layers are asked for: never at the
// port that a registry without one has.
func TestAnnouncedPort(t *testing.T) {
	const host = "127.0.0.77" // nobody else's
	r := fixture.Referrers(t)
	way := serveHTTP(t, host+":0", &httputil.ReverseProxy{Rewrite: func(q *httputil.ProxyRequest) {
		q.SetURL(&url.URL{Scheme: "http", Host: r.Host()})
	}})
	var wrong atomic.Int64
	serveHTTP(t, host+":80", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		wrong.Add(1)
		http.Error(w, "another service", http.StatusNotFound)
	}))
	n := fixture.Node(t, node.Options{DemandOnly: true})
	hears(t, n)
	o := &odd{t: t, registry: r, node: n}
	name := o.push(true)
	pullAsClient(t, n, way+"/"+name+":test")
	if lazy := o.present(name) < layerSize/2; !lazy {
		t.Error("the image is not lazy")
	}
	img := o.image(name + "-other")
	mustf(t, images.Push(fixture.Context(t), r.Direct()+"/"+name+":other", img), "push")
	config, err := img.ConfigName()
	mustf(t, err, "config")
	looked := make(chan struct{})
	once := sync.OnceFunc(func() { close(looked) })
	late := time.AfterFunc(3*time.Second, once)
	defer late.Stop()
	var early atomic.Bool
	r.SetRule(func(q *http.Request, _ int64) registry.Fault {
		switch {
		case strings.HasPrefix(q.UserAgent(), "micad/"):
			early.Store(early.Load() || late.Stop())
			once()
		case strings.HasSuffix(q.URL.Path, config.String()):
			return registry.Fault{Hold: looked}
		}
		return registry.Fault{}
	})
	pullAsClient(t, n, way+"/"+name+":other")
	if !early.Load() {
		t.Error("an image of a repository that is known was not announced")
	}
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d requests to another port", n)
	}
}

// serveHTTP serves at an address until the test's end, and returns the address.
func serveHTTP(t *testing.T, addr string, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	mustf(t, err, "listen")
	config := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	s := &httptest.Server{Listener: l, Config: config}
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().String()
}

// pullAsClient pulls an image by this process, as dockerd does.
func pullAsClient(t *testing.T, n *node.Node, ref string) {
	t.Helper()
	client, err := n.Client()
	mustf(t, err, "client")
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts)),
	})
	_, err = client.Pull(namespaces.WithNamespace(fixture.Context(t), n.Namespace()), ref,
		containerd.WithPullUnpack, containerd.WithPullSnapshotter(mica),
		containerd.WithResolver(resolver),
		containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)))
	mustf(t, err, "pull")
}
