package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

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

// result is one start of the program.
type result struct {
	snapshotter string
	pull        time.Duration // the pull command
	start       time.Duration // from its end to the program's first line
	ready       time.Duration // from there to its last line
	down        int64         // bytes downloaded until then
	output      string
}

// measure starts the program on a node without any state, from a cold page
// cache. Only the registry's copy of the image is in memory, since it is not
// what is measured.
func (m *measurement) measure(ctx context.Context, snapshotter string) (r result, err error) {
	m.registry.SetProfile(shaper.Profile{})
	n, err := node.Start(ctx, "", node.Options{NoMicad: snapshotter != node.Snapshotter})
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

	begin := time.Now()
	if err := n.Pull(ctx, snapshotter, m.ref); err != nil {
		return result{}, err
	}
	pulled := time.Now()
	w := &watch{}
	if err := n.RunTo(ctx, w, snapshotter, m.ref, "demo"); err != nil {
		return result{}, err
	}
	started, ready, err := w.times()
	if err != nil {
		return result{}, err
	}
	return result{
		snapshotter: snapshotter, output: w.output.String(), down: m.registry.Traffic().Down,
		pull: pulled.Sub(begin), start: started.Sub(pulled), ready: ready.Sub(started),
	}, nil
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
	ref, err := name.ParseReference(strings.Replace(m.ref, m.registry.Host(), m.registry.Direct(), 1), name.Insecure)
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
	}
	return len(p), nil
}

func (w *watch) times() (started, ready time.Time, err error) {
	if w.started.IsZero() || w.ready.IsZero() {
		return started, ready, fmt.Errorf("the program printed %q", w.output.String())
	}
	return w.started, w.ready, nil
}
