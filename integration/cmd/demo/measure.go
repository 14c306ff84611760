package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// measurement is what all runs have in common.
type measurement struct {
	registry *registry.Registry
	ref      string
	network  shaper.Profile
}

// way is how a program is started.
type way string

// The ways, in the order in which they are measured: the last needs the profile of the one before.
const (
	byOverlayfs way = "overlayfs"
	firstStart  way = "mica, first start"
	withProfile way = "mica, with its profile"
)

var ways = []way{byOverlayfs, firstStart, withProfile}

func (w way) snapshotter() string {
	if w == byOverlayfs {
		return string(w)
	}
	return node.Snapshotter
}

// result is one start of the program.
type result struct {
	way      way
	begin    time.Time
	pull     time.Duration // the pull command
	start    time.Duration // from its end to the program's first line
	ready    time.Duration // from there to its last line
	local    time.Duration // from there until the kernel serves the whole image; 0 for overlayfs
	down     int64         // bytes downloaded until ready
	requests []registry.Timed
	output   string
}

// total is from the pull's begin until ready.
func (r *result) total() time.Duration { return r.pull + r.start + r.ready }

// measure starts the program on a node without any state, from a cold page
// cache. Only the registry's copy of the image is in memory, since it is not
// what is measured.
func (m *measurement) measure(ctx context.Context, way way) (r result, err error) {
	m.registry.SetProfile(shaper.Profile{})
	n, err := node.Start(ctx, "", node.Options{NoMicad: way == byOverlayfs})
	if err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if err := dropCaches(); err != nil {
		return result{}, err
	}
	if err := m.warm(ctx); err != nil {
		return result{}, fmt.Errorf("read the image at the registry: %w", err)
	}
	m.registry.SetProfile(m.network)
	m.registry.ResetTraffic()

	r = result{way: way, begin: time.Now()}
	if err := n.Pull(ctx, way.snapshotter(), m.ref); err != nil {
		return result{}, err
	}
	r.pull = time.Since(r.begin)
	w := &watch{}
	w.atReady = func() { r.down, r.requests = m.registry.Traffic().Down, m.registry.Timeline() }
	if err := n.RunTo(ctx, w, way.snapshotter(), m.ref, "demo"); err != nil {
		return result{}, err
	}
	started, ready, err := w.times()
	if err != nil {
		return result{}, err
	}
	r.output = w.output.String()
	r.start, r.ready = started.Sub(r.begin)-r.pull, ready.Sub(started)
	if way == byOverlayfs {
		return r, nil
	}
	if r.local, err = whenLocal(ctx, n, ready); err != nil {
		return result{}, err
	}
	if way == firstStart {
		err = m.publish(ctx, n)
	}
	return r, err
}

// localPatience bounds the wait for a whole image.
const localPatience = time.Minute

// whenLocal returns how long after ready all layers are local.
func whenLocal(ctx context.Context, n *node.Node, ready time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, localPatience)
	defer cancel()
	c := admin.NewClient(n.MicadAddress())
	for {
		var layers []fs.Status
		if err := c.Get(ctx, admin.PathLayers, &layers); err != nil {
			return 0, fmt.Errorf("wait for the whole image: %w", err)
		}
		lazy := func(l fs.Status) bool { return l.Mode != fs.Local }
		if !slices.ContainsFunc(layers, lazy) {
			return time.Since(ready), nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// publish puts the profile of the first start, which micad has recorded, beside the image. micad
// ends a recording when it stops, and else ten seconds after the start.
func (m *measurement) publish(ctx context.Context, n *node.Node) error {
	if err := n.RestartMicad(ctx); err != nil {
		return err
	}
	m.registry.SetProfile(shaper.Profile{})
	_, err := n.Mica(ctx, "profile", "push", "--address", n.MicadAddress(), m.direct())
	return err
}

// direct is the image's name at the registry itself.
func (m *measurement) direct() string {
	return strings.Replace(m.ref, m.registry.Host(), m.registry.Direct(), 1)
}

// dropCaches empties the machine's page cache, as after a boot.
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		return fmt.Errorf("empty the page cache: %w", err)
	}
	return nil
}

// warm reads all blobs of the image and of its index at the registry.
func (m *measurement) warm(ctx context.Context) error {
	ref, err := name.ParseReference(m.direct(), name.Insecure)
	if err != nil {
		return err
	}
	desc, err := remote.Get(ref, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	refs, err := remote.Referrers(ref.Context().Digest(desc.Digest.String()), remote.WithContext(ctx))
	if err != nil {
		return err
	}
	artifacts, err := refs.IndexManifest()
	if err != nil {
		return err
	}
	digests := []string{desc.Digest.String()}
	for _, a := range artifacts.Manifests {
		digests = append(digests, a.Digest.String())
	}
	for _, d := range digests {
		img, err := remote.Image(ref.Context().Digest(d), remote.WithContext(ctx))
		if err != nil {
			return err
		}
		manifest, err := img.Manifest()
		if err != nil {
			return err
		}
		for _, l := range manifest.Layers {
			url := fmt.Sprintf("http://%s/v2/%s/blobs/%s", m.registry.Direct(), ref.Context().RepositoryStr(), l.Digest)
			if err := readAll(ctx, url); err != nil {
				return err
			}
		}
	}
	return nil
}

func readAll(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// watch keeps a program's output and notes when its first and last line came.
// Its methods are called by one goroutine after the other.
type watch struct {
	output         bytes.Buffer
	started, ready time.Time
	atReady        func()
}

// Write implements io.Writer.
func (w *watch) Write(p []byte) (int, error) {
	now := time.Now()
	w.output.Write(p)
	if text := w.output.String(); w.started.IsZero() && strings.HasPrefix(text, images.Started+"\n") {
		w.started = now
	}
	if w.ready.IsZero() && strings.HasSuffix(w.output.String(), "\n"+images.Ready+"\n") {
		w.ready = now
		w.atReady()
	}
	return len(p), nil
}

func (w *watch) times() (started, ready time.Time, err error) {
	if w.started.IsZero() || w.ready.IsZero() {
		return started, ready, fmt.Errorf("the program printed %q", w.output.String())
	}
	return w.started, w.ready, nil
}
