package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	pushTries = 6               // attempts that one push makes
	pushStall = 2 * time.Minute // a registry that has a blob hashes it before it answers
	tagTries  = 5               // rounds of reading, changing and reading again the fallback tag
)

// PushBlob uploads the blob that d describes from r, unless the registry has it. r is read from its
// start, again for each attempt. The registry checks the digest.
func (i *Image) PushBlob(ctx context.Context, d ocispec.Descriptor, r io.ReadSeeker) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("push blob %s to %s: %w", d.Digest, i.ref, err)
	}
	what := fmt.Sprintf("push blob %s to %s", d.Digest, i.ref)
	return i.push(ctx, what, func(x *exchanger, h *host) error {
		rest := "blobs/" + d.Digest.String()
		resp, err := x.send(ctx, h, &call{method: http.MethodHead, rest: rest, actions: actionPush})
		if err == nil {
			resp.close()
			return nil
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		rest = "blobs/uploads/"
		resp, err = x.send(ctx, h, &call{method: http.MethodPost, rest: rest, actions: actionPush})
		if err != nil {
			return err
		}
		resp.close()
		to, err := resp.via.Parse(resp.Header.Get("Location"))
		if err != nil || resp.Header.Get("Location") == "" {
			return fmt.Errorf("%s: upload has no location", h.name)
		}
		if to.Scheme != h.scheme && to.Host == h.name {
			to.Scheme = h.scheme // behind a proxy a registry may not know its own
		}
		q := to.Query()
		q.Set("digest", d.Digest.String())
		to.RawQuery = q.Encode()
		if _, err := r.Seek(0, io.SeekStart); err != nil {
			return &localError{err}
		}
		up := &uploading{from: io.LimitReader(r, d.Size), size: d.Size}
		put := &call{
			method: http.MethodPut, url: to, actions: actionPush, body: up, stall: pushStall,
			header: http.Header{"Content-Type": {"application/octet-stream"}},
		}
		if to.Host == h.name {
			resp, err = x.send(ctx, h, put)
		} else if h.scheme == "https" && to.Scheme != "https" {
			return fmt.Errorf("%s: upload is to go in the clear, to %s", h.name, to.Host)
		} else if resp, err = x.once(ctx, h, put, to, ""); err == nil {
			resp, err = x.checked(resp, put, to)
		}
		up.wait() // or the next attempt reads r at the same time
		if up.err != nil {
			return &localError{up.err}
		}
		if err != nil {
			return err
		}
		resp.close()
		return nil
	})
}

// localError is the failure of what is to be pushed, not of the registry.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// putManifest uploads a manifest or index under tag, or under its digest alone if tag is empty.
// listed says that the registry has entered it into the list of its subject's referrers.
func (i *Image) putManifest(
	ctx context.Context, mediaType string, content []byte, tag string,
) (d ocispec.Descriptor, listed bool, err error) {
	d = ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content),
		Size: int64(len(content))}
	if len(content) > MaxManifest {
		return d, false, fmt.Errorf("push manifest %s to %s: %d bytes: %w", d.Digest, i.ref,
			len(content), ErrTooLarge)
	}
	name := or(tag, d.Digest.String())
	what := fmt.Sprintf("push manifest %s to %s", name, i.ref)
	err = i.push(ctx, what, func(x *exchanger, h *host) error {
		up := &uploading{from: strings.NewReader(string(content)), size: d.Size}
		resp, err := x.send(ctx, h, &call{
			method: http.MethodPut, rest: "manifests/" + name, actions: actionPush,
			body: up, stall: pushStall,
			header: http.Header{"Content-Type": {mediaType}},
		})
		up.wait()
		if err != nil {
			return err
		}
		listed = resp.Header.Get("OCI-Subject") != ""
		if listed {
			h.setReferrers(true, time.Now())
		}
		resp.close()
		return nil
	})
	return d, listed, err
}

// PushReferrer uploads m, by digest, with the given subject. Where the registry does not list
// referrers by itself, the list at the fallback tag is extended; its other entries stay, but for
// old: referrers of the caller's own kind that m takes the place of. These are deleted as well,
// where the registry allows it.
func (i *Image) PushReferrer(
	ctx context.Context, subject ocispec.Descriptor, m ocispec.Manifest, old ...ocispec.Descriptor,
) (ocispec.Descriptor, error) {
	m.Subject = &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest,
		Size: subject.Size}
	if err := subject.Digest.Validate(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("push referrer to %s: subject: %w", i.ref, err)
	}
	m.MediaType, m.Versioned = ocispec.MediaTypeImageManifest, specs.Versioned{SchemaVersion: 2}
	d, listed, err := i.putReferrer(ctx, m)
	if err != nil {
		return d, err
	}
	same := func(o ocispec.Descriptor) bool { return o.Digest == d.Digest }
	old = slices.DeleteFunc(slices.Clone(old), same)
	d.ArtifactType, d.Annotations = or(m.ArtifactType,
		m.Config.MediaType), maps.Clone(m.Annotations)
	if !listed {
		if err := i.extendFallback(ctx, subject.Digest, d, old); err != nil {
			return d, fmt.Errorf("list %s as a referrer of %s in %s: %w",
				d.Digest, subject.Digest, i.ref, err)
		}
	}
	for _, o := range old {
		i.deleteManifest(ctx, o.Digest)
	}
	return d, nil
}

// putReferrer uploads m, or what says the same to a registry that refuses it: with its type as that
// of the config, as artifacts were before version 1.1 of the specification, and then without a
// subject.
func (i *Image) putReferrer(
	ctx context.Context, m ocispec.Manifest,
) (d ocispec.Descriptor, listed bool, err error) {
	put := func(m ocispec.Manifest) error {
		content, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("push referrer to %s: %w", i.ref, err)
		}
		d, listed, err = i.putManifest(ctx, m.MediaType, content, "")
		return err
	}
	if err = put(m); err == nil || !refusesForm(err) || m.ArtifactType == "" {
		return d, listed, err
	}
	m.Config.MediaType, m.Config.Data, m.ArtifactType = m.ArtifactType, nil, ""
	if second := put(m); second == nil || !refusesForm(second) {
		return d, listed, second
	}
	m.Subject = nil
	if put(m) == nil {
		return d, false, nil
	}
	return d, listed, fmt.Errorf("%w; %s takes no artifacts beside its images, in the form of OCI "+
		"1.1 or in the older one: ask who runs it, or push the image and what belongs to it to "+
		"another registry", err, i.repo.registry)
}

// refusesForm tells whether a registry has refused a manifest for what it is.
func refusesForm(err error) bool {
	var s *statusError
	if !errors.As(err, &s) {
		return false
	}
	switch s.code {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable,
		http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// deleteManifest deletes a manifest of which nobody needs to know whether it is still there: many
// registries do not allow it.
func (i *Image) deleteManifest(ctx context.Context, d digest.Digest) {
	hosts, err := i.pushHosts(ctx)
	if err != nil || d.Validate() != nil {
		return
	}
	x := &exchanger{client: i.client, repo: i.repo.name, stats: &i.stats}
	c := &call{method: http.MethodDelete, rest: "manifests/" + d.String(), actions: actionDelete}
	if resp, err := x.send(ctx, hosts[0], c); err == nil {
		resp.close()
	}
}

// extendFallback enters d into the index at the fallback tag, and takes old out. Registries cannot
// compare and swap a tag, so it reads again what it wrote, and starts anew when another writer was
// faster.
func (i *Image) extendFallback(
	ctx context.Context, subject digest.Digest, d ocispec.Descriptor, old []ocispec.Descriptor,
) error {
	hosts, err := i.pushHosts(ctx)
	if err != nil {
		return err
	}
	for try := 0; try < tagTries; try++ {
		index, err := i.fallback(ctx, subject, hosts[0], nil)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		goes := func(o ocispec.Descriptor) bool {
			same := func(p ocispec.Descriptor) bool { return p.Digest == o.Digest }
			return slices.ContainsFunc(old, same)
		}
		is := func(o ocispec.Descriptor) bool {
			return o.Digest == d.Digest && o.ArtifactType == d.ArtifactType &&
				maps.Equal(o.Annotations, d.Annotations)
		}
		if !slices.ContainsFunc(index.Manifests, goes) && slices.ContainsFunc(index.Manifests, is) {
			return nil
		}
		index.SchemaVersion, index.MediaType = 2, ocispec.MediaTypeImageIndex
		index.Manifests = slices.DeleteFunc(index.Manifests, func(o ocispec.Descriptor) bool {
			return o.Digest == d.Digest || goes(o)
		})
		index.Manifests = append(index.Manifests, d)
		content, err := json.Marshal(index)
		if err != nil {
			return err
		}
		if _, _, err := i.putManifest(ctx, index.MediaType, content,
			fallbackTag(subject)); err != nil {
			return err
		}
	}
	return fmt.Errorf("tag %s is changed by others all the time", fallbackTag(subject))
}

func (i *Image) pushHosts(ctx context.Context) ([]*host, error) {
	set, err := i.client.hostsOf(ctx, i.repo.registry)
	if err != nil {
		return nil, err
	}
	hosts := set.with(docker.HostCapabilityPush)
	if len(hosts) == 0 {
		return nil, fmt.Errorf("no host of %s may be pushed to", i.repo.registry)
	}
	return hosts, nil
}

// push does an upload at the registry: at the first host that takes uploads, as containerd does, a
// few times.
func (i *Image) push(ctx context.Context, what string, do func(*exchanger, *host) error) error {
	hosts, err := i.pushHosts(ctx)
	if err != nil {
		return fmt.Errorf("%w (%s)", err, what)
	}
	x := &exchanger{client: i.client, repo: i.repo.name, stats: &i.stats}
	rot := newRotation(i.client, &i.stats, what, hosts[:1])
	for try := 0; ; try++ {
		e, err := rot.pick(ctx)
		if err != nil {
			return err
		}
		if err = do(x, e.host); err == nil {
			e.worked()
			return nil
		}
		var local *localError
		if try+1 == pushTries || errors.As(err, &local) {
			return fmt.Errorf("%w (%s)", err, what)
		}
		rot.failed(ctx, e, err)
	}
}

// uploading is the body of a request. The transport may read it for some time after the request has
// failed, until it closes it.
type uploading struct {
	from  io.Reader
	size  int64
	watch *watch
	err   error // of from; read it after wait

	once sync.Once
	done chan struct{} // nil: never handed to the transport
}

func (u *uploading) begin(w *watch) {
	u.watch, u.done = w, make(chan struct{})
}

// wait returns when the transport has let go of the body.
func (u *uploading) wait() {
	if u.done != nil {
		<-u.done
	}
}

// Read implements io.Reader, and takes each call as a sign that the server is alive.
func (u *uploading) Read(p []byte) (int, error) {
	u.watch.kick()
	n, err := u.from.Read(p)
	if err != nil && err != io.EOF {
		u.err = err
	}
	return n, err
}

// Close implements io.Closer.
func (u *uploading) Close() error {
	u.once.Do(func() { close(u.done) })
	return nil
}
