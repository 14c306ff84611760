package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/mica-snapshotter/mica/remote"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
	"github.com/mica-snapshotter/mica/snapshotter"
	"github.com/mica-snapshotter/mica/snapshotter/blobs"
	"github.com/mica-snapshotter/mica/snapshotter/containerd"
)

const (
	claimsName = "blobs"   // below the root
	ownContent = "content" // the ID of containerd's own plugin
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
	end        context.CancelFunc
	telling    sync.WaitGroup

	mu     sync.Mutex
	images map[told][]<-chan struct{} // each is closed when containerd has been told of a blob
}

// told is an image of a namespace.
type told struct {
	namespace string
	manifest  digest.Digest
}

// maxTold is how many images are remembered of which containerd is being told.
const maxTold = 1000

// openContents opens the content store that the configuration names, if any. Where that fails,
// containers are served all the same.
func openContents(ctx context.Context, d *daemon) *contents {
	if d.config.Content == "" {
		return nil
	}
	c := &contents{containerd: d.containerd, log: d.log, images: map[told][]<-chan struct{}{}}
	c.life, c.end = context.WithCancel(context.WithoutCancel(ctx))
	var err error
	c.store, err = blobs.Open(ctx, blobs.Options{
		Root: d.config.Content, Dir: filepath.Join(d.config.Root, claimsName),
		Write: func(path string, content []byte) error {
			return atomicfile.ReplaceBytes(path, 0o600, content)
		},
		Fetch: fetchBlob(d.client), More: c.sources,
		Stall: d.config.PullDeadline.d, Log: d.log,
	})
	if err != nil {
		d.log.Error("containerd has no content: content_store cannot be opened; restart micad when "+
			"this is put right", "err", err)
		c.end()
		return nil
	}
	return c
}

// sources returns references that have a blob, as containerd knows.
func (c *contents) sources(ctx context.Context, d digest.Digest) []string {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	refs, err := c.containerd.Sources(ctx, d)
	if err != nil {
		c.log.Debug("containerd does not say where a blob comes from", "blob", d, "err", err)
	}
	return refs
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
	contentapi.RegisterContentServer(server, c.store.Server())
}

func (c *contents) close() error {
	if c == nil {
		return nil
	}
	c.end()
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
func (c *contents) Refused(layer digest.Digest, above bool) { c.store.Decided(layer, above) }

// Served implements snapshotter.Blobs. It returns for the topmost layer of an image when containerd
// knows of all the image's blobs that it is told of: then the pull ends, and they may be asked for.
func (c *contents) Served(ctx context.Context, namespace string, l snapshotter.Layer) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	desc, err := c.containerd.Blob(ctx, namespace, l.Manifest, l.Digest)
	if err == nil && !c.store.Note(desc, l.Ref) {
		err = c.store.Claim(ctx, desc, l.Ref)
	}
	c.store.Decided(l.Digest, false)
	if err != nil {
		c.log.Warn("containerd is not told of a served layer's blob: the image cannot be exported",
			"ref", l.Ref, "layer", l.Digest, "err", err)
		return
	}
	ready := make(chan struct{})
	c.telling.Go(func() {
		defer close(ready)
		c.tell(namespace, l.Ref, desc)
	})
	image := c.awaited(told{namespace, l.Manifest}, ready, len(l.Image) == 1)
	for _, ready := range image {
		<-ready
	}
}

// awaited counts one more blob of an image. With the last one it returns all.
func (c *contents) awaited(t told, ready <-chan struct{}, last bool) []<-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := append(c.images[t], ready)
	if last {
		delete(c.images, t)
		return all
	}
	if len(c.images) > maxTold { // of pulls that were broken off
		clear(c.images)
	}
	c.images[t] = all
	return nil
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

// watch tells containerd of blobs that no pull has asked for: their layers were served before, or
// micad was not its content plugin then.
func (c *contents) watch(ctx context.Context, s *snapshotter.Snapshotter) {
	look := func(namespace, image string) { c.look(ctx, s, namespace, image) }
	c.containerd.WatchImages(ctx, func() {
		if !c.isPlugin(ctx) {
			return
		}
		if err := c.containerd.EachImage(ctx, look); err != nil && ctx.Err() == nil {
			c.log.Warn("containerd is not told of all served layers' blobs", "err", err)
		}
	}, look)
}

// look tells containerd of an image's blobs that it does not have, as far as their layers are
// served.
func (c *contents) look(ctx context.Context, s *snapshotter.Snapshotter, namespace, image string) {
	absent, err := c.containerd.Absent(ctx, namespace, image, func(d digest.Digest) bool {
		_, err := c.store.Info(ctx, d)
		return err == nil
	})
	if err != nil {
		c.log.Debug("not all blobs of an image are told of", "ref", image, "err", err)
		return
	}
	for _, a := range absent {
		layers, err := s.Serves(ctx, a.Chain)
		if err != nil || !slices.Contains(layers, a.Blob.Digest) {
			continue
		}
		for _, ref := range a.Refs {
			if ctx.Err() == nil {
				c.tell(namespace, ref, a.Blob)
			}
		}
	}
}

// isPlugin says whether containerd asks micad for content.
func (c *contents) isPlugin(ctx context.Context) bool {
	plugin, err := c.containerd.ContentPlugin(ctx)
	if err == nil && plugin == ownContent {
		c.log.Warn("content_store is set, and containerd keeps its content itself: images that are " +
			"not here cannot be exported or pushed (see docs/content.md)")
	}
	return err == nil && plugin != ownContent
}

// watchContent serves what contents is for. Where micad was containerd's content plugin once and is
// none any more, containerd is told which blobs it does not have: it would believe to have them,
// and not download them.
func (d *daemon) watchContent(ctx context.Context) {
	if d.content != nil {
		d.content.watch(ctx, d.snapshotter)
		return
	}
	dir := filepath.Join(d.config.Root, claimsName)
	if _, err := os.Stat(dir); err != nil || d.containerd == nil || d.config.Content != "" {
		return
	}
	for wait := restoreAgain; ; wait = min(2*wait, restoreAtLast) {
		err := d.takeBack(ctx, dir)
		if err == nil || ctx.Err() != nil {
			return
		}
		d.log.Error("containerd may believe that it has blobs that it cannot read", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// takeBack has containerd forget blobs that it cannot read.
func (d *daemon) takeBack(ctx context.Context, dir string) error {
	plugin, err := d.containerd.ContentPlugin(ctx)
	if err != nil {
		return err
	}
	if plugin != ownContent {
		return fmt.Errorf("content_store is not set, and containerd's content plugin is %s", plugin)
	}
	all := blobs.Claimed(dir, d.log)
	if err := d.containerd.Drop(ctx, all); err != nil {
		return err
	}
	d.log.Info("micad is not containerd's content plugin any more: blobs that were never downloaded "+
		"are forgotten", "blobs", len(all))
	return os.RemoveAll(dir)
}
