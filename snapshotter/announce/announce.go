// Package announce hears from containerd of the images that it has begun to pull.
//
// containerd asks a snapshotter for the first layer when it has the image's manifest and, after that, its configuration: two or more
// round trips and several commits later than an image's name is known. It tells of the manifest as soon as it has it, to whoever
// listens to its events, and notes beside it which repository it came from. That is all that Mica needs to begin.
//
//	containerd ── event /content/create ──▶ Watch ── content, labels ──▶ Image
//
// Nothing depends on it: without containerd's events (before 2.1), or where its socket cannot be found, a pull begins when containerd asks.
package announce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

const (
	topic       = "/content/create"
	sourceLabel = labels.LabelDistributionSource + "." // with the registry's host; its value are repositories
	dockerHub   = "docker.io"                          // has no port

	maxManifest = 1 << 20 // bytes
	maxLayers   = 512     // more cannot be mounted
	atOnce      = 8       // manifests that are looked at

	// The label follows the event, after a transaction of containerd's database. It is asked for
	// after labelTick, and less and less often, because content that is imported never has one.
	labelTick = time.Millisecond
	labelWait = time.Second
)

// Image is an image of which containerd has the manifest.
type Image struct {
	Repository string // with its registry's host, as in references
	Manifest   digest.Digest
	Layers     []digest.Digest // of the blobs, lowest first
}

// Options of Watch.
type Options struct {
	// Containerd is containerd's socket. Empty: that of the containerd that has Snapshotter as a proxy plugin.
	Containerd  string
	Snapshotter string // micad's socket
	Log         *slog.Logger
}

// Watch calls fn for every image whose manifest comes to containerd, until ctx ends. Calls may be parallel, and should not take long. Where
// there is no containerd, or none any more, it waits for one.
func Watch(ctx context.Context, o Options, fn func(Image)) {
	for wait := findOften; ctx.Err() == nil; wait = min(wait*5/4, findSeldom) {
		p, err := find(ctx, o.Containerd, o.Snapshotter)
		if err == nil {
			began := time.Now()
			err = p.listen(ctx, o.Log, fn)
			if time.Since(began) > findSeldom {
				wait = findOften
			}
		}
		if err != nil && ctx.Err() == nil {
			o.Log.Debug("containerd does not tell of pulls", "address", p.address, "err", err, "again", wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// listen is Watch for as long as this containerd is there.
func (p process) listen(ctx context.Context, log *slog.Logger, fn func(Image)) error {
	conn, err := dial(p.address)
	if err != nil {
		return err
	}
	var looking sync.WaitGroup
	defer looking.Wait()
	defer conn.Close()
	stream, err := eventsapi.NewEventsClient(conn).Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: []string{`topic=="` + topic + `"`}})
	if err != nil {
		return err
	}
	log.Info("containerd tells of pulls as they begin", "address", p.address)
	store, names := proxy.NewContentStore(conn), imagesapi.NewImagesClient(conn)
	slots := make(chan struct{}, atOnce)
	for {
		e, err := stream.Recv()
		if err != nil {
			return err
		}
		d, ok := manifestOf(e)
		if !ok {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			continue // it is pulled without
		}
		looking.Go(func() {
			defer func() { <-slots }()
			image, ok, err := p.look(namespaces.WithNamespace(ctx, e.Namespace), store, names, d)
			if err != nil && ctx.Err() == nil {
				log.Debug("manifest of a pull is not to be had", "manifest", d, "err", err)
			}
			if ok {
				fn(image)
			}
		})
	}
}

// manifestOf returns the digest of what an event tells of, if that may be an image's manifest.
func manifestOf(e *types.Envelope) (digest.Digest, bool) {
	var c events.ContentCreate
	if e.Topic != topic || e.Event == nil || proto.Unmarshal(e.Event.Value, &c) != nil || c.Size > maxManifest {
		return "", false
	}
	if c.MediaType != "" && !images.IsManifestType(c.MediaType) {
		return "", false // older versions do not say
	}
	d := digest.Digest(c.Digest)
	return d, d.Validate() == nil
}

// look reads a manifest in containerd's content store, which has verified it. ok: it is an image's.
func (p process) look(
	ctx context.Context, store content.Store, names imageStore, d digest.Digest,
) (_ Image, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, labelWait)
	defer cancel()
	b, err := content.ReadBlob(ctx, store, ocispec.Descriptor{Digest: d})
	if err != nil {
		return Image{}, false, err
	}
	layers := parse(b)
	if len(layers) == 0 {
		return Image{}, false, nil
	}
	for wait := labelTick; ; wait *= 2 {
		info, err := store.Info(ctx, d)
		if err != nil {
			return Image{}, false, err
		}
		if host, repository, ok := source(info.Labels); ok {
			authority, ok := p.authority(ctx, names, host, repository)
			if !ok {
				return Image{}, false, fmt.Errorf("the port of registry %s is not known", host)
			}
			return Image{authority + "/" + repository, d, layers}, true, nil
		}
		select {
		case <-ctx.Done():
			return Image{}, false, errors.New("it is not said where it comes from")
		case <-time.After(wait):
		}
	}
}

// imageStore is what is asked of containerd's images.
type imageStore interface {
	List(
		ctx context.Context, in *imagesapi.ListImagesRequest, opts ...grpc.CallOption,
	) (*imagesapi.ListImagesResponse, error)
}

// authority returns a registry's host as references have it, for containerd notes it without its
// port: as in the names of the repository's images that containerd knows, or else with the port of
// the connections that it has there. ok is false where neither says it, because somebody else pulls
// the image, say, and for a mirror.
func (p process) authority(
	ctx context.Context, names imageStore, host, repository string,
) (authority string, ok bool) {
	if host == dockerHub {
		return host, true
	}
	known, err := names.List(ctx, &imagesapi.ListImagesRequest{
		Filters: []string{named(host, repository)},
	})
	if err == nil && len(known.Images) > 0 {
		for _, image := range known.Images {
			at, _, _ := strings.Cut(image.Name, "/")
			if authority != "" && at != authority {
				return "", false
			}
			authority = at
		}
		return authority, true
	}
	return withPort(ctx, p.pid, host)
}

// named is containerd's filter for the names of a repository's images, at a host with or without a
// port.
func named(host, repository string) string {
	pattern := fmt.Sprintf(`^\[?%s\]?(:[0-9]+)?/%s[:@]`,
		regexp.QuoteMeta(host), regexp.QuoteMeta(repository))
	return "name~=" + strconv.Quote(pattern)
}

// parse returns the layers of an image's manifest, none for everything else.
func parse(b []byte) []digest.Digest {
	var m ocispec.Manifest
	if json.Unmarshal(b, &m) != nil || m.Config.Digest == "" || len(m.Layers) > maxLayers {
		return nil
	}
	var layers []digest.Digest
	for _, l := range m.Layers {
		if images.IsLayerType(l.MediaType) && l.Digest.Validate() == nil {
			layers = append(layers, l.Digest)
		}
	}
	return layers
}

// source returns a registry's host, without a port, and one of its repositories that containerd has noted for content.
func source(noted map[string]string) (host, repository string, ok bool) {
	for key, value := range noted {
		host, ok := strings.CutPrefix(key, sourceLabel)
		if repository, _, _ := strings.Cut(value, ","); ok && host != "" && repository != "" {
			return host, repository, true
		}
	}
	return "", "", false
}
