package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// MaxManifest is the largest manifest, image index or list of referrers that is read, in bytes.
	MaxManifest = 8 << 20

	maxKept  = 1 << 20 // bytes of manifests that an image keeps
	maxBlobs = 4096    // blobs of a repository of which something is remembered
)

// Docker's names for manifests, besides those of OCI.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var manifestTypes = []string{strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerList, "*/*",
}, ", ")}

// Image is one reference in a registry. It is shared: see Client.Image.
type Image struct {
	client *Client
	ref    string
	tag    string        // "" if the reference has none
	digest digest.Digest // "" if the reference has none
	repo   *repository
	stats  counters
	used   uint64 // guarded by client.mu

	mu   sync.Mutex
	kept map[digest.Digest][]byte // manifests seen, for Resolve is followed by Manifest as a rule
	size int
}

// repository is what the images of a repository share.
type repository struct {
	client   *Client
	registry string // as in the reference: "docker.io"
	name     string // "library/debian"
	used     uint64 // guarded by client.mu

	mu    sync.Mutex
	blobs map[digest.Digest]*blobState
}

func (r *repository) blob(d digest.Digest) *blobState {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.blobs[d]
	if !ok {
		if len(r.blobs) >= maxBlobs {
			clear(r.blobs) // costs a redirect each
		}
		s = &blobState{}
		r.blobs[d] = s
	}
	return s
}

// Ref returns the reference in full.
func (i *Image) Ref() string { return i.ref }

// Stats returns the counts of this image.
func (i *Image) Stats() Stats { return i.stats.stats() }

// Resolve returns the descriptor of the image's manifest or index: that of the digest in the
// reference, or else of its tag (which only hosts that may resolve are asked for). What it fetches
// is kept for Manifest.
func (i *Image) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	name := i.tag
	if i.digest != "" {
		name = i.digest.String()
	}
	if name == "" {
		return ocispec.Descriptor{}, fmt.Errorf("resolve %s: the reference has no tag and no "+
			"digest", i.ref)
	}
	d, err := i.manifest(ctx, name, i.digest, nil)
	d.Data = nil // not for whoever copies the descriptor into a manifest
	return d, err
}

// Manifest returns the manifest or index that d describes, with the right digest and at most
// MaxManifest bytes.
func (i *Image) Manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if b := i.keptManifest(d.Digest); b != nil {
		return b, nil
	}
	got, err := i.manifest(ctx, d.Digest.String(), d.Digest, nil)
	if err != nil {
		return nil, err
	}
	if d.Size > 0 && d.Size != got.Size {
		return nil, fmt.Errorf("manifest %s of %s has %d bytes, not %d: %w", d.Digest, i.ref,
			got.Size, d.Size, ErrCorrupt)
	}
	return got.Data, nil
}

func (i *Image) keptManifest(d digest.Digest) []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.kept[d]
}

func (i *Image) keep(d digest.Digest, b []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.kept[d]; ok || i.size+len(b) > maxKept {
		return
	}
	if i.kept == nil {
		i.kept = map[digest.Digest][]byte{}
	}
	i.kept[d] = b
	i.size += len(b)
}

// manifest fetches manifests/name. want is its digest if that is known. The descriptor returned
// carries the bytes as Data. It is for a look-up, and asks this host alone, if from is not nil.
func (i *Image) manifest(
	ctx context.Context, name string, want digest.Digest, from *host,
) (ocispec.Descriptor, error) {
	caps := docker.HostCapabilityPull
	if want == "" {
		caps |= docker.HostCapabilityResolve
	} else if err := want.Validate(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("manifest of %s: %w", i.ref, err)
	}
	var d ocispec.Descriptor
	doc := document{
		what: fmt.Sprintf("manifest %s of %s", name, i.ref), caps: caps, max: MaxManifest,
		call: call{
			method: http.MethodGet, rest: "manifests/" +
				name, aside: from != nil, proved: want != "",
			header: http.Header{"Accept": manifestTypes},
		},
		use: func(h *host, header http.Header, b []byte) (err error) {
			d, err = describe(header, b, want)
			return err
		},
	}
	if from != nil {
		doc.only = []*host{from}
	}
	if err := i.get(ctx, doc); err != nil {
		return ocispec.Descriptor{}, err
	}
	i.keep(d.Digest, d.Data)
	return d, nil
}

// describe makes the descriptor of a manifest and checks its digest: against want, or else against
// what the registry says.
func describe(header http.Header, b []byte, want digest.Digest) (ocispec.Descriptor, error) {
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Layers    []json.RawMessage `json:"layers"`
	}
	if want == "" {
		want = digest.Digest(header.Get("Docker-Content-Digest"))
	}
	if want == "" {
		want = digest.FromBytes(b)
	}
	if err := want.Validate(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("digest %q: %w: %w", printable(string(want), 80),
			err, ErrCorrupt)
	}
	if got := want.Algorithm().FromBytes(b); got != want {
		return ocispec.Descriptor{}, fmt.Errorf("digest %s: %w %s", got, ErrCorrupt, want)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	// The manifest's word counts before the header's: its digest covers it.
	t := m.MediaType
	if t == "" {
		t, _, _ = mime.ParseMediaType(header.Get("Content-Type"))
		switch {
		case strings.Contains(t, "manifest") || strings.Contains(t, "index"):
		case m.Manifests != nil:
			t = ocispec.MediaTypeImageIndex
		case m.Layers != nil:
			t = ocispec.MediaTypeImageManifest
		}
	}
	return ocispec.Descriptor{MediaType: t, Digest: want, Size: int64(len(b)), Data: b}, nil
}

// FetchBlob returns a whole blob of at most limit bytes, with the right digest.
func (i *Image) FetchBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	what := fmt.Sprintf("blob %s of %s", d.Digest, i.ref)
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w (%s)", err, what)
	}
	if d.Size < 0 || d.Size > limit {
		return nil, fmt.Errorf("%s: %d bytes, at most %d wanted: %w", what, d.Size, limit,
			ErrTooLarge)
	}
	var out []byte
	err := i.get(ctx, document{
		what: what, caps: docker.HostCapabilityPull, max: d.Size,
		call: call{
			method: http.MethodGet, rest: "blobs/" +
				d.Digest.String(), target: &i.repo.blob(d.Digest).target,
			header: http.Header{"Accept-Encoding": {"identity"}}, proved: true,
		},
		use: func(_ *host, _ http.Header, b []byte) error {
			if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest ||
				int64(len(b)) != d.Size {
				return fmt.Errorf("%d bytes with digest %s: %w", len(b), got, ErrCorrupt)
			}
			out = b
			return nil
		},
	})
	return out, err
}

// Open streams a whole blob, as Blob.Range does. It does not verify it.
func (i *Image) Open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return i.Blob(d).Range(ctx, 0, d.Size)
}

// document is something small that is fetched whole.
type document struct {
	what string
	caps docker.HostCapabilities
	only []*host // instead of those with caps
	max  int64   // bytes
	call call
	// failed is told of each attempt that fails and is made again; nil: nobody is.
	failed func()
	// use judges what came from a host; with an error the next host is asked.
	use func(h *host, header http.Header, body []byte) error
}

// suspect makes the attempts that follow ask the registry itself: not where it was found, nor
// caches on the way.
func (d *document) suspect() {
	if t := d.call.target; t != nil {
		t.forget()
	}
	d.call.header = d.call.header.Clone()
	d.call.header.Set("Cache-Control", "no-cache")
}

// get fetches a document from the first host that has it.
func (i *Image) get(ctx context.Context, d document) error {
	hosts := d.only
	if hosts == nil {
		set, err := i.client.hostsOf(ctx, i.repo.registry)
		if err != nil {
			return err
		}
		hosts = set.with(d.caps)
	}
	if len(hosts) == 0 {
		return fmt.Errorf("%s: no host of %s may be asked for it: %w", d.what, i.repo.registry,
			ErrNotFound)
	}
	rot := newRotation(i.client, &i.stats, d.what, hosts)
	rot.small, rot.aside = true, d.call.aside
	for {
		e, err := rot.pick(ctx)
		if err != nil {
			return err
		}
		header, body, err := i.getFrom(ctx, e.host, &d)
		if err == nil {
			err = d.use(e.host, header, body)
		}
		if err == nil {
			e.worked()
			return nil
		}
		if errors.Is(err, ErrCorrupt) {
			d.suspect()
		}
		rot.failed(ctx, e, err)
		if d.failed != nil && !isPermanent(err) {
			d.failed()
		}
	}
}

// insist asks one host for a document until it is here, refused, something else, or ctx ends.
func (i *Image) insist(ctx context.Context, h *host, d *document) (http.Header, []byte, error) {
	rot := newRotation(i.client, &i.stats, h.name, []*host{h})
	rot.small, rot.aside = true, d.call.aside
	for {
		e, err := rot.pick(ctx)
		if err != nil {
			return nil, nil, err
		}
		header, body, err := i.getFrom(ctx, h, d)
		if err == nil || errors.Is(err, errNotBlob) {
			return header, body, err
		}
		rot.failed(ctx, e, err)
		if d.failed != nil && !isPermanent(err) {
			d.failed()
		}
	}
}

// getFrom fetches a document from one host.
func (i *Image) getFrom(ctx context.Context, h *host, d *document) (http.Header, []byte, error) {
	x := exchanger{client: i.client, repo: i.repo.name, stats: &i.stats}
	r, err := x.send(ctx, h, &d.call)
	if err != nil {
		return nil, nil, err
	}
	defer r.close()
	at := fmt.Sprintf("%s %s%s", d.call.method, r.via.Host, r.via.Path)
	if r.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: status %d", at, r.StatusCode)
	}
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "text/html" {
		return nil, nil, fmt.Errorf("%s: %w: it is %s", at, errNotBlob, t)
	}
	if r.ContentLength > d.max {
		return nil, nil, fmt.Errorf("%s: %d bytes, at most %d wanted: %w", at, r.ContentLength,
			d.max, ErrTooLarge)
	}
	var b []byte
	if r.ContentLength >= 0 {
		b = make([]byte, r.ContentLength)
		_, err = io.ReadFull(watchedBody{r}, b)
		err = noEOF(err)
	} else {
		b, err = io.ReadAll(io.LimitReader(watchedBody{r}, d.max+1))
		if err == nil && int64(len(b)) > d.max {
			err = fmt.Errorf("more than %d bytes: %w", d.max, ErrTooLarge)
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", at, err)
	}
	return r.Header, b, nil
}
