package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/mica-snapshotter/mica/remote"
	"github.com/mica-snapshotter/mica/snapshotter"
	"github.com/mica-snapshotter/mica/snapshotter/blobs"
	"github.com/mica-snapshotter/mica/snapshotter/containerd"
)

const (
	claimsName = "blobs.db" // below the root
	ownContent = "content"  // the ID of containerd's own plugin
	// tellTime bounds how long containerd is told of one blob, and claimTime how long its layer
	// waits for it to be claimed: longer only where images contradict each other.
	tellTime  = 10 * time.Second
	claimTime = time.Second
)

// contents makes the blobs of served layers a part of containerd's content. A nil one does nothing.
type contents struct {
	store      *blobs.Store
	containerd *containerd.Client
	log        *slog.Logger
	life       context.Context
	telling    sync.WaitGroup

	mu     sync.Mutex
	images map[told]*sync.WaitGroup // of which containerd is being told
}

// told is an image of a namespace.
type told struct {
	namespace string
	manifest  digest.Digest
}

// openContents opens the content store that the configuration names, if any.
func openContents(ctx context.Context, d *daemon) (*contents, error) {
	if d.config.Content == "" {
		return nil, nil
	}
	store, err := blobs.Open(ctx, blobs.Options{
		Root: d.config.Content, Path: filepath.Join(d.config.Root, claimsName),
		Fetch: fetchBlob(d.client), Stall: time.Duration(d.config.PullDeadline), Log: d.log,
	})
	if err != nil {
		return nil, err
	}
	return &contents{store: store, containerd: d.containerd, log: d.log,
		life: context.WithoutCancel(ctx), images: map[told]*sync.WaitGroup{}}, nil
}

// fetchBlob reads blobs from registries.
func fetchBlob(c *remote.Client) blobs.Fetch {
	return func(
		ctx context.Context, ref string, desc ocispec.Descriptor, off int64,
	) (io.ReadCloser, error) {
		image, err := c.Image(ref)
		if err != nil {
			return nil, err
		}
		return image.Blob(desc).Range(ctx, off, desc.Size-off)
	}
}

// register serves containerd's content API.
func (c *contents) register(server *grpc.Server) {
	if c == nil {
		return
	}
	contentapi.RegisterContentServer(server, contentserver.New(c.store))
}

func (c *contents) close() error {
	if c == nil {
		return nil
	}
	c.telling.Wait()
	return c.store.Close()
}

// expect hears of the layers of an image that containerd has begun to pull.
func (c *contents) expect(layers []digest.Digest) {
	if c != nil {
		c.store.Expect(layers)
	}
}

// Asked implements snapshotter.Blobs.
func (c *contents) Asked(layer digest.Digest) { c.store.Asked(layer) }

// Refused implements snapshotter.Blobs.
func (c *contents) Refused(layer digest.Digest) { c.store.Decided(layer, false) }

// Served implements snapshotter.Blobs. It returns for the topmost layer of an image when containerd
// knows of all the image's blobs that it is told of: then the pull ends, and they may be asked for.
func (c *contents) Served(ctx context.Context, namespace string, l snapshotter.Layer) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	desc, err := c.containerd.Blob(ctx, namespace, l.Manifest, l.Digest)
	if err == nil && !c.store.Note(desc, l.Ref) {
		err = c.store.Claim(ctx, desc, l.Ref)
	}
	c.store.Decided(l.Digest, err == nil)
	if err != nil {
		c.log.Warn("containerd is not told of a served layer's blob: the image cannot be exported",
			"ref", l.Ref, "layer", l.Digest, "err", err)
		return
	}
	image := c.begin(told{namespace, l.Manifest})
	c.telling.Go(func() {
		defer image.Done()
		c.tell(namespace, l.Ref, desc)
	})
	if len(l.Image) == 1 {
		image.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.images, told{namespace, l.Manifest})
	}
}

// begin counts one more blob of an image.
func (c *contents) begin(t told) *sync.WaitGroup {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.images) > 1000 { // of pulls that were broken off
		clear(c.images)
	}
	if c.images[t] == nil {
		c.images[t] = new(sync.WaitGroup)
	}
	c.images[t].Add(1)
	return c.images[t]
}

// tell tells a namespace of a blob.
func (c *contents) tell(namespace, ref string, desc ocispec.Descriptor) {
	ctx, cancel := context.WithTimeout(c.life, tellTime)
	defer cancel()
	err := c.containerd.Keep(ctx, namespace, ref, desc, func() error {
		return c.store.Claim(ctx, desc, ref)
	})
	if err != nil {
		c.log.Warn("containerd is not told of a served layer's blob: the image cannot be exported",
			"namespace", namespace, "ref", ref, "blob", desc.Digest, "err", err)
	}
}

// watch tells containerd of blobs that no pull has asked for, because their layers were served
// before.
func (c *contents) watch(ctx context.Context, s *snapshotter.Snapshotter) {
	c.containerd.WatchImages(ctx, func() { c.checkPlugin(ctx) }, func(namespace, image string) {
		absent, err := c.containerd.Absent(ctx, namespace, image)
		if err != nil {
			c.log.Debug("not all blobs of an image are told of", "image", image, "err", err)
			return
		}
		for _, a := range absent {
			if served, err := s.Serves(ctx, a.Chain); err != nil || !served {
				continue
			}
			for _, ref := range a.Refs {
				c.tell(namespace, ref, a.Blob)
			}
		}
	})
}

// checkPlugin says so where containerd does not ask micad for content.
func (c *contents) checkPlugin(ctx context.Context) {
	if plugin, err := c.containerd.ContentPlugin(ctx); err == nil && plugin == ownContent {
		c.log.Warn("content_store is set, and containerd keeps its content itself: images that are " +
			"not here cannot be exported or pushed (see docs/content.md)")
	}
}

// watchContent serves what contents is for. Where micad was containerd's content plugin once and is
// none any more, containerd is told which blobs it does not have: it would believe to have them, and
// not download them.
func (d *daemon) watchContent(ctx context.Context) {
	path := filepath.Join(d.config.Root, claimsName)
	if d.content != nil {
		d.content.watch(ctx, d.snapshotter)
		return
	}
	all, err := blobs.Claimed(path, d.log)
	for wait := restoreAgain; len(all) > 0 && d.containerd != nil; wait = min(2*wait, restoreAtLast) {
		if err = d.takeBack(ctx, all, path); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
	if err != nil {
		d.log.Error("containerd may believe that it has blobs that it cannot read", "err", err)
	}
}

// takeBack has containerd forget blobs that it cannot read.
func (d *daemon) takeBack(ctx context.Context, all []digest.Digest, path string) error {
	plugin, err := d.containerd.ContentPlugin(ctx)
	if err != nil {
		return err
	}
	if plugin != ownContent {
		return fmt.Errorf("content_store is not set, and containerd's content plugin is %s", plugin)
	}
	if err := d.containerd.Drop(ctx, all); err != nil {
		return err
	}
	d.log.Info("micad is not containerd's content plugin any more: blobs that were never downloaded "+
		"are forgotten", "blobs", len(all))
	return os.Remove(path)
}
