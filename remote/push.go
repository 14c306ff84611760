package remote

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/remote/registry"
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
	return i.push(ctx, what, func(h *registry.Host) error {
		resp, err := i.repo.Send(ctx, h, &registry.Call{
			Method: http.MethodHead, Rest: "blobs/" + d.Digest.String(),
			Actions: registry.ActionPush,
		})
		if err == nil {
			resp.Close()
			return nil
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		resp, err = i.repo.Send(ctx, h, &registry.Call{
			Method: http.MethodPost, Rest: "blobs/uploads/", Actions: registry.ActionPush,
		})
		if err != nil {
			return err
		}
		resp.Close()
		to, err := resp.Via.Parse(resp.Header.Get("Location"))
		if err != nil || resp.Header.Get("Location") == "" {
			return fmt.Errorf("%s: upload has no location", h.Name)
		}
		if to.Scheme != h.Scheme && to.Host == h.Name {
			to.Scheme = h.Scheme // behind a proxy a registry may not know its own
		}
		q := to.Query()
		q.Set("digest", d.Digest.String())
		to.RawQuery = q.Encode()
		if _, err := r.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("%w: %w", errLocal, err)
		}
		put := &registry.Call{
			Method: http.MethodPut, URL: to, Actions: registry.ActionPush, Stall: pushStall,
			Header: http.Header{"Content-Type": {"application/octet-stream"}},
			Body:   registry.NewBody(r, d.Size),
		}
		if to.Host == h.Name {
			resp, err = i.repo.Send(ctx, h, put)
		} else if h.Scheme == "https" && to.Scheme != "https" {
			return fmt.Errorf("%s: upload is to go in the clear, to %s", h.Name, to.Host)
		} else {
			resp, err = i.repo.SendTo(ctx, h, put, to)
		}
		// Not before the body is let go of, or the next attempt reads r at the same time.
		if local := put.Body.Wait(); local != nil {
			return fmt.Errorf("%w: %w", errLocal, local)
		}
		if err != nil {
			return err
		}
		resp.Close()
		return nil
	})
}

// errLocal is the failure of what is to be pushed, not of the registry.
var errLocal = errors.New("what is to be pushed cannot be read")

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
	name := cmp.Or(tag, d.Digest.String())
	what := fmt.Sprintf("push manifest %s to %s", name, i.ref)
	err = i.push(ctx, what, func(h *registry.Host) error {
		put := &registry.Call{
			Method: http.MethodPut, Rest: "manifests/" + name, Actions: registry.ActionPush,
			Header: http.Header{"Content-Type": {mediaType}}, Stall: pushStall,
			Body: registry.NewBody(bytes.NewReader(content), d.Size),
		}
		resp, err := i.repo.Send(ctx, h, put)
		_ = put.Body.Wait() // it is in memory
		if err != nil {
			return err
		}
		listed = resp.Header.Get("OCI-Subject") != ""
		if listed {
			h.SetReferrers(true)
		}
		resp.Close()
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
	d.ArtifactType = cmp.Or(m.ArtifactType, m.Config.MediaType)
	d.Annotations = maps.Clone(m.Annotations)
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
		"another registry", err, i.repo.Registry())
}

// refusesForm tells whether a registry has refused a manifest for what it is.
func refusesForm(err error) bool {
	var s *registry.StatusError
	if !errors.As(err, &s) {
		return false
	}
	switch s.Code {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable,
		http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// deleteManifest deletes a manifest of which nobody needs to know whether it is still there: many
// registries do not allow it.
func (i *Image) deleteManifest(ctx context.Context, d digest.Digest) {
	host, err := i.pushHost(ctx)
	if err != nil || d.Validate() != nil {
		return
	}
	resp, err := i.repo.Send(ctx, host, &registry.Call{
		Method: http.MethodDelete, Rest: "manifests/" + d.String(), Actions: registry.ActionDelete,
	})
	if err == nil {
		resp.Close()
	}
}

// extendFallback enters d into the index at the fallback tag, and takes old out. Registries cannot
// compare and swap a tag, so it reads again what it wrote, and starts anew when another writer was
// faster.
func (i *Image) extendFallback(
	ctx context.Context, subject digest.Digest, d ocispec.Descriptor, old []ocispec.Descriptor,
) error {
	host, err := i.pushHost(ctx)
	if err != nil {
		return err
	}
	for try := 0; try < tagTries; try++ {
		index, err := i.fallback(ctx, subject, host, nil)
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

// pushHost returns the host that takes uploads: the first that may, as for containerd.
func (i *Image) pushHost(ctx context.Context) (*registry.Host, error) {
	set, err := i.repo.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	hosts := set.With(docker.HostCapabilityPush)
	if len(hosts) == 0 {
		return nil, fmt.Errorf("no host of %s may be pushed to", i.repo.Registry())
	}
	return hosts[0], nil
}

// push does an upload at the registry, a few times.
func (i *Image) push(ctx context.Context, what string, do func(*registry.Host) error) error {
	host, err := i.pushHost(ctx)
	if err != nil {
		return fmt.Errorf("%w (%s)", err, what)
	}
	rot := i.repo.Rotation(what, []*registry.Host{host})
	for try := 1; ; try++ {
		e, err := rot.Pick(ctx)
		if err != nil {
			return err
		}
		if err = do(e.Host); err == nil {
			e.Worked()
			return nil
		}
		if try == pushTries || errors.Is(err, errLocal) {
			return fmt.Errorf("%w (%s)", err, what)
		}
		rot.Failed(ctx, e, err)
	}
}
