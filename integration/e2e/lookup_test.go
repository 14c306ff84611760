package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/remote"
)

const (
	// lookupMost is how much longer a pull may take than containerd's own, once a host and hour,
	// and lookupSoon after that.
	lookupMost, lookupSoon = 5 * time.Second, 2 * time.Second
	// ownMost is how long containerd's own pull takes here at the most.
	ownMost = 5 * time.Second
	// layerSize is a size in bytes that no lazy pull comes near to.
	layerSize = 2 << 20
)

// odd pulls images from a registry that answers oddly.
type odd struct {
	t        *testing.T
	registry *registry.Registry
	node     *node.Node
	n        int
}

// push pushes an image that shares no layer with others, and returns its name.
func (o *odd) push(indexed bool) string {
	o.t.Helper()
	o.n++
	own := strings.ToLower(strings.NewReplacer("/", "-", " ", "-").Replace(o.t.Name()))
	name := fmt.Sprintf("odd/%s-%d", own, o.n)
	fixture.Push(o.t, o.registry, name, o.image(name))
	if indexed {
		fixture.Index(o.t, o.registry, name)
	}
	return name
}

// image makes an image of one layer, another for each name.
func (o *odd) image(name string) v1.Image {
	o.t.Helper()
	content := make([]byte, layerSize)
	if _, err := rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(content); err != nil {
		o.t.Fatal(err)
	}
	tar, err := images.Tar(images.File("data", 0o644, content))
	mustf(o.t, err, "tar")
	img, err := images.FromTars([]string{"/data"}, tar)
	mustf(o.t, err, "image")
	return img
}

// pull pulls an image by a host. lazy: next to nothing of its layer has come.
func (o *odd) pull(host, name string) (lazy bool, took time.Duration) {
	o.t.Helper()
	start := time.Now()
	fixture.Pull(o.t, o.node, mica, host+"/"+name+":test")
	took = time.Since(start)
	return o.present(name) < layerSize/2, took
}

// present is how many bytes of an image's layer are on the node.
func (o *odd) present(name string) int64 {
	o.t.Helper()
	out, err := o.node.Mica(fixture.Context(o.t),
		"ps", "--json", "--address", o.node.MicadAddress())
	mustf(o.t, err, "mica ps")
	var ps struct {
		Layers []struct {
			Ref     string `json:"reference"`
			Present int64  `json:"present_bytes"`
		} `json:"layers"`
	}
	mustf(o.t, json.Unmarshal([]byte(out), &ps), "mica ps")
	for _, l := range ps.Layers {
		if strings.Contains(l.Ref, name) {
			return l.Present
		}
	}
	o.t.Fatalf("no layer of %s in %s", name, out)
	return 0
}

// hosts writes the hosts.toml of a registry.
func (o *odd) hosts(name, format string, args ...any) {
	o.t.Helper()
	dir := filepath.Join(o.node.HostsDir(), name)
	mustf(o.t, os.MkdirAll(dir, 0o755), "hosts")
	text := fmt.Appendf(nil, format, args...)
	mustf(o.t, os.WriteFile(filepath.Join(dir, "hosts.toml"), text, 0o644), "hosts")
}

// front is another way to the registry, with faults of its own.
func (o *odd) front(rule registry.Rule) *registry.Registry {
	o.t.Helper()
	f, err := o.registry.Front()
	mustf(o.t, err, "front")
	o.t.Cleanup(func() { mustf(o.t, f.Close(), "close") })
	f.SetRule(rule)
	return f
}

// whenListing meets requests for the list of referrers with a fault, and with tags those for
// the fallback tag too.
func whenListing(f registry.Fault, tags bool) registry.Rule {
	return func(r *http.Request, _ int64) registry.Fault {
		if strings.Contains(r.URL.Path, "/referrers/") ||
			tags && strings.Contains(r.URL.Path, "/manifests/sha256-") {
			return f
		}
		return registry.Fault{}
	}
}

// TestReferrersBroken: a registry that does not answer when it is asked for an index costs some
// seconds once, and hardly any time after that.
func TestReferrersBroken(t *testing.T) {
	r := fixture.Referrers(t)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	busy := (&odd{t: t, registry: r}).front(func(*http.Request, int64) registry.Fault {
		return registry.Fault{Status: http.StatusTooManyRequests, RetryAfter: "60"}
	})
	const index = `{"schemaVersion": 2, "mediaType": "` + ocispec.MediaTypeImageIndex + `"`
	silence := registry.Fault{Hold: make(chan struct{})}
	redirect := registry.Fault{Status: http.StatusSeeOther, Location: "http://" + busy.Host() + "/"}
	page := registry.Fault{Link: `<http://internal.invalid:5000/v2/x?n=2>; rel="next"`}
	null := registry.Fault{Status: http.StatusOK, Body: index + `, "manifests": null}`}
	missing := registry.Fault{Status: http.StatusOK, Body: index + `}`}
	for _, c := range []struct {
		name  string
		fault registry.Fault
		tags  bool // the fault is met there, too
		lazy  bool
		most  time.Duration // of the first pull, without containerd's part
	}{
		{"502", registry.Fault{Status: http.StatusBadGateway}, true, false, lookupMost},
		{"silence", silence, true, false, lookupMost},
		{"silence but for the tag", silence, false, true, lookupMost},
		{"redirect to 429", redirect, true, false, lookupMost},
		{"page at another host", page, false, true, lookupSoon},
		{"null", null, false, true, lookupSoon},
		{"no list", missing, false, true, lookupSoon},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &odd{t: t, registry: r, node: n}
			first, second := o.push(true), o.push(true)
			front := o.front(whenListing(c.fault, c.tags))
			lazy, took := o.pull(front.Host(), first)
			if lazy != c.lazy || took > c.most+ownMost {
				t.Errorf("the first pull is lazy: %v, and took %v", lazy, took)
			}
			lazy, took = o.pull(front.Host(), second)
			if lazy != c.lazy || took > lookupSoon+ownMost {
				t.Errorf("the second pull is lazy: %v, and took %v", lazy, took)
			}
		})
	}
}

// TestDeadOrigin: where only a mirror can be reached, an image is lazy from there, at once.
func TestDeadOrigin(t *testing.T) {
	n := fixture.Node(t, node.Options{DemandOnly: true})
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts nothing
	mustf(t, err, "listen")
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	mustf(t, err, "listen")
	refused := gone.Addr().String()
	mustf(t, gone.Close(), "close")
	registries := map[string]*registry.Registry{
		"tag": fixture.Registry(t), "API": fixture.Referrers(t),
	}
	origins := map[string]string{"refused": refused, "silent": silent.Addr().String()}
	for kind, r := range registries {
		for name, origin := range origins {
			t.Run(kind+"/"+name, func(t *testing.T) {
				o := &odd{t: t, registry: r, node: n}
				image, plain := o.push(true), o.push(false)
				mirror := o.front(nil)
				host := fmt.Sprintf("%s-%s.test", strings.ToLower(kind), name)
				o.hosts(host, "server = \"http://%s\"\n[host.\"http://%s\"]\n"+
					"capabilities = [\"pull\", \"resolve\"]\n", origin, mirror.Host())
				if lazy, took := o.pull(host, image); !lazy || took > lookupSoon+ownMost {
					t.Errorf("lazy: %v, in %v", lazy, took)
				}
				if lazy, took := o.pull(host, plain); lazy || took > lookupMost+ownMost {
					t.Errorf("without an index lazy: %v, in %v", lazy, took)
				}
			})
		}
	}
}

// TestManyArtifacts: an index is found among many artifacts of which the registry does not say what
// they are, each time and with few requests.
func TestManyArtifacts(t *testing.T) {
	r := fixture.Referrers(t)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	o := &odd{t: t, registry: r, node: n}
	client, err := remote.New(remote.Config{})
	mustf(t, err, "client")
	defer client.Close()
	ctx := fixture.Context(t)
	for k := range 4 {
		name := o.push(k%2 == 0)
		im, err := client.Image(r.Direct() + "/" + name + ":test")
		mustf(t, err, "image")
		d, err := im.Resolve(ctx)
		mustf(t, err, "resolve")
		mustf(t, im.PushBlob(ctx, ocispec.DescriptorEmptyJSON, strings.NewReader("{}")), "push")
		for a := range 40 {
			m := ocispec.Manifest{
				MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON,
				Layers:       []ocispec.Descriptor{ocispec.DescriptorEmptyJSON},
				ArtifactType: "application/vnd.example.signature",
				Annotations:  map[string]string{"n": strings.Repeat(fmt.Sprint(a), 500)},
			}
			_, err := im.PushReferrer(ctx, d, m)
			mustf(t, err, "push")
		}
		if k%2 != 0 {
			fixture.Index(t, r, name)
		}
		r.ResetTraffic()
		if lazy, _ := o.pull(r.Host(), name); !lazy {
			t.Errorf("image %d is not lazy", k)
		}
		manifests := 0
		for _, q := range r.Traffic().Requests {
			_, at, ok := strings.Cut(q.Path, "/manifests/")
			if ok && at != "test" && digest.Digest(at) != d.Digest {
				manifests++
			}
		}
		if manifests > 1 { // the tag
			t.Errorf("image %d: %d requests for manifests", k, manifests)
		}
	}
}
