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

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/remote/registry"
)

// MaxManifest is the largest manifest, image index or list of referrers that is read, in bytes.
const MaxManifest = 8 << 20

// Docker's names for manifests, besides those of OCI.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var manifestTypes = []string{strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerList, "*/*",
}, ", ")}

// Image is one reference in a registry: see Client.Image.
type Image struct {
	client *Client
	ref    string
	tag    string        // "" if the reference has none
	digest digest.Digest // "" if the reference has none
	repo   *registry.Repository
}

// Ref returns the reference in full.
func (i *Image) Ref() string { return i.ref }

// Requests is how many HTTP requests were sent by this Image and its blobs.
func (i *Image) Requests() uint64 { return i.repo.Requests() }

// Connect makes connections to the image's first host in advance, until n wait for requests, and
// returns at once. Those that are not used within seconds are closed again.
func (i *Image) Connect(ctx context.Context, n int) { i.repo.Connect(ctx, n) }

// Blob returns the blob that d describes. No I/O.
func (i *Image) Blob(d ocispec.Descriptor) *Blob { return i.client.blobs.Blob(i.repo, i.ref, d) }

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

// manifest fetches manifests/name. want is its digest if that is known. The descriptor returned
// carries the bytes as Data. It is for a look-up, and asks this host alone, if from is not nil.
func (i *Image) manifest(
	ctx context.Context, name string, want digest.Digest, from *registry.Host,
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
		call: registry.Call{
			Method: http.MethodGet, Rest: "manifests/" + name,
			Header: http.Header{"Accept": manifestTypes}, Aside: from != nil, Proved: want != "",
		},
		use: func(_ *registry.Host, header http.Header, b []byte) (err error) {
			d, err = describe(header, b, want)
			return err
		},
	}
	if from != nil {
		doc.only = []*registry.Host{from}
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
		return ocispec.Descriptor{}, fmt.Errorf("digest %q: %w: %w", registry.Printable(string(want), 80),
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
		call: registry.Call{
			Method: http.MethodGet, Rest: "blobs/" + d.Digest.String(),
			Header: http.Header{"Accept-Encoding": {"identity"}},
			Target: i.client.blobs.Target(i.repo, d.Digest), Proved: true,
		},
		use: func(_ *registry.Host, _ http.Header, b []byte) error {
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
	only []*registry.Host // instead of those with caps
	max  int64            // bytes
	call registry.Call
	// anyType says that a page for people is an answer as well.
	anyType bool
	// failed is told of each attempt that fails and is made again; nil: nobody is.
	failed func()
	// use judges what came from a host; with an error the next host is asked.
	use func(h *registry.Host, header http.Header, body []byte) error
}

// suspect makes the attempts that follow ask the registry itself: not where it was found, nor
// caches on the way.
func (d *document) suspect() {
	if t := d.call.Target; t != nil {
		t.Forget()
	}
	d.call.Header = d.call.Header.Clone()
	d.call.Header.Set("Cache-Control", "no-cache")
}

// get fetches a document from the first host that has it.
func (i *Image) get(ctx context.Context, d document) error {
	hosts := d.only
	if hosts == nil {
		set, err := i.repo.Hosts(ctx)
		if err != nil {
			return err
		}
		hosts = set.With(d.caps)
	}
	if len(hosts) == 0 {
		return fmt.Errorf("%s: no host of %s may be asked for it: %w", d.what, i.repo.Registry(),
			ErrNotFound)
	}
	rot := i.repo.Rotation(d.what, hosts)
	rot.Small, rot.Aside = true, d.call.Aside
	return rot.Do(ctx, d.failed, func(h *registry.Host) error {
		header, body, err := i.getFrom(ctx, h, &d)
		if err == nil {
			err = d.use(h, header, body)
		}
		if errors.Is(err, ErrCorrupt) {
			d.suspect()
		}
		return err
	})
}

// getFrom fetches a document from one host.
func (i *Image) getFrom(
	ctx context.Context, h *registry.Host, d *document,
) (http.Header, []byte, error) {
	r, err := i.repo.Send(ctx, h, &d.call)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	at := fmt.Sprintf("%s %s%s", d.call.Method, r.Via.Host, r.Via.Path)
	if r.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: status %d", at, r.StatusCode)
	}
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "text/html" && !d.anyType {
		return nil, nil, fmt.Errorf("%s: %w: it is %s", at, registry.ErrNotBlob, t)
	}
	if r.ContentLength > d.max {
		return nil, nil, fmt.Errorf("%s: %d bytes, at most %d wanted: %w", at, r.ContentLength,
			d.max, ErrTooLarge)
	}
	var b []byte
	if r.ContentLength >= 0 {
		b = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r, b)
		err = registry.NoEOF(err)
	} else {
		b, err = io.ReadAll(io.LimitReader(r, d.max+1))
		if err == nil && int64(len(b)) > d.max {
			err = fmt.Errorf("more than %d bytes: %w", d.max, ErrTooLarge)
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", at, err)
	}
	return r.Header, b, nil
}
