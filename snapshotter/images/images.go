// Package images asks containerd which of its images have a chain of layers, and where they were
// pulled from.
//
// containerd gives a snapshotter a chain ID, which is made of the diffIDs that an image's config
// claims. Two images that claim the same chain share its snapshots, and nothing in a call says for
// which of them a container is made. containerd's image store and content store do:
//
//	image store: name ── target ──▶ index or manifest ──▶ config: diffIDs ──▶ chain IDs
//	content store: manifest ── label containerd.io/distribution.source.HOST ──▶ repositories
//
// The label names the repositories that the manifest was really pulled from. A name alone does not:
// an operator may have given it to an image on the node.
//
// # Concurrency
//
// All methods may run in parallel. What a manifest says never changes, and is kept.
package images

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/mica-snapshotter/mica/snapshotter"
)

var _ snapshotter.Images = (*Store)(nil)

const (
	maxDocument = 8 << 20 // bytes of a manifest, an index or a config
	maxNested   = 4       // how deep an index may lie in others
	maxKept     = 4096    // documents

	sourceLabel = labels.LabelDistributionSource + "." // with the registry's host, without its port

	// fullLabel is a length of key and value from which on containerd may have had no room for one
	// more repository: it leaves out what takes more than 4096 bytes.
	fullLabel = 3500

	// configLabel is on the content of every manifest that containerd keeps: without it, its config
	// would be collected.
	configLabel = "containerd.io/gc.ref.content.config"
)

// Store is the images of one containerd. Make it with New.
type Store struct {
	images  imagesapi.ImagesClient
	content content.Store

	mu   sync.Mutex
	kept map[digest.Digest]document
}

// New returns the images of the containerd at the other end of a connection.
func New(conn grpc.ClientConnInterface) *Store {
	return &Store{
		images: imagesapi.NewImagesClient(conn), content: proxy.NewContentStore(conn),
		kept: map[digest.Digest]document{},
	}
}

// With implements snapshotter.Images.
func (s *Store) With(
	ctx context.Context, namespace string, chain digest.Digest, known []string,
) ([]snapshotter.Image, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	list, err := s.images.List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containerd's images: %w", err)
	}
	search := search{s: s, found: map[digest.Digest]document{}}
	names := slices.Clone(known)
	for _, i := range list.Images {
		names = append(names, i.Name)
		if i.Target == nil {
			continue
		}
		target := ocispec.Descriptor{MediaType: i.Target.MediaType, Digest: digest.Digest(i.Target.Digest)}
		if err := search.add(ctx, target, maxNested); err != nil {
			return nil, fmt.Errorf("image %s: %w", i.Name, err)
		}
	}
	var whole, longer []snapshotter.Image
	for d, doc := range search.found {
		at := slices.Index(doc.chains, chain)
		if at < 0 {
			continue
		}
		refs, err := s.sources(ctx, d, names)
		if err != nil {
			return nil, err
		}
		image := doc.image(d, refs)
		if at == len(doc.chains)-1 {
			whole = append(whole, image)
		} else {
			longer = append(longer, image)
		}
	}
	if len(whole) > 0 {
		return whole, nil
	}
	return longer, nil
}

// Named implements snapshotter.Images.
func (s *Store) Named(
	ctx context.Context, namespace, ref string, manifest digest.Digest,
) (snapshotter.Image, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	doc, err := s.read(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: manifest})
	if err != nil {
		return snapshotter.Image{}, err
	}
	return doc.image(manifest, []string{ref}), nil
}

// search collects the manifests of images.
type search struct {
	s       *Store
	found   map[digest.Digest]document
	present map[digest.Digest]bool // the manifests that containerd has; nil: not asked yet
}

// add adds the manifests that a target leads to, and that containerd has.
func (x *search) add(ctx context.Context, d ocispec.Descriptor, depth int) error {
	if _, ok := x.found[d.Digest]; ok || depth == 0 {
		return nil
	}
	index := images.IsIndexType(d.MediaType)
	if !index && !images.IsManifestType(d.MediaType) {
		return nil
	}
	if !index && depth < maxNested && !x.s.keeps(d.Digest) {
		if err := x.look(ctx); err != nil {
			return err
		}
		if !x.present[d.Digest] { // of another platform, for instance
			return nil
		}
	}
	doc, err := x.s.read(ctx, d)
	if errdefs.IsNotFound(err) {
		return nil // no container can be made of it
	}
	if err != nil {
		return err
	}
	if !index {
		x.found[d.Digest] = doc
		return nil
	}
	for _, child := range doc.children {
		if err := x.add(ctx, child, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// look finds the manifests that containerd has.
func (x *search) look(ctx context.Context) error {
	if x.present != nil {
		return nil
	}
	x.present = map[digest.Digest]bool{}
	err := x.s.content.Walk(ctx, func(i content.Info) error {
		x.present[i.Digest] = true
		return nil
	}, fmt.Sprintf("labels.%q", configLabel))
	if err != nil {
		return fmt.Errorf("list containerd's manifests: %w", err)
	}
	return nil
}

func (s *Store) keeps(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.kept[d]
	return ok
}

// read returns a document of the content store, which has verified it. What is there and says nothing
// of layers has none.
func (s *Store) read(ctx context.Context, d ocispec.Descriptor) (document, error) {
	s.mu.Lock()
	doc, ok := s.kept[d.Digest]
	s.mu.Unlock()
	if ok {
		return doc, nil
	}
	b, err := s.bytes(ctx, d.Digest)
	if err != nil {
		return document{}, err
	}
	if images.IsIndexType(d.MediaType) {
		doc = parseIndex(b)
	} else {
		config, layers := parseManifest(b)
		if config != "" {
			if b, err = s.bytes(ctx, config); err != nil {
				return document{}, err
			}
			doc = parseConfig(b, layers)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) >= maxKept {
		clear(s.kept)
	}
	s.kept[d.Digest] = doc
	return doc, nil
}

func (s *Store) bytes(ctx context.Context, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("content %q: %w", d, err)
	}
	r, err := s.content.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	defer r.Close()
	if r.Size() > maxDocument {
		return nil, fmt.Errorf("content %s: %d bytes are more than a manifest or config has", d, r.Size())
	}
	b := make([]byte, r.Size())
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, r.Size()), b); err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	return b, nil
}

// sources returns a reference, without tag, for each repository that a manifest was pulled from. names
// are references of any images, which tell the registries' ports. Nil: not all are known.
func (s *Store) sources(ctx context.Context, manifest digest.Digest, names []string) ([]string, error) {
	info, err := s.content.Info(ctx, manifest)
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", manifest, err)
	}
	var refs []string
	for key, value := range info.Labels {
		host, ok := strings.CutPrefix(key, sourceLabel)
		if !ok {
			continue
		}
		if len(key)+len(value) > fullLabel {
			return nil, nil
		}
		for repository := range strings.SplitSeq(value, ",") {
			found := locators(names, host, repository)
			if len(found) == 0 {
				return nil, nil
			}
			refs = append(refs, found...)
		}
	}
	return refs, nil
}
