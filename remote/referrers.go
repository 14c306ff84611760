package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxReferrerPages = 64
	maxReferrers     = 10000
	maxUntyped       = 16 // entries whose manifests are fetched because the list does not say what they are
)

var (
	errNoReferrersAPI = errors.New("no referrers API")
	errNoReferrers    = errors.New("no referrers here")
)

// Referrers returns the descriptors, annotations included, of the manifests whose subject is the given manifest and which have the
// artifact type ("" for any). It asks the referrers API, and where no host has one the fallback tag
// (https://github.com/opencontainers/distribution-spec, "Listing Referrers"). That a host has no API is remembered. No
// referrers are no error.
func (i *Image) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	what := fmt.Sprintf("referrers of %s in %s", subject, i.ref)
	if err := subject.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	set, err := i.client.hostsOf(ctx, i.repo.registry)
	if err != nil {
		return nil, err
	}
	var asked []*host
	for _, h := range set.with(docker.HostCapabilityReferrers) {
		if !h.lacksReferrers(time.Now()) {
			asked = append(asked, h)
		}
	}
	// One after the other they take two round trips where there is no API, and one of each goes together.
	var tag *early
	if !slices.ContainsFunc(asked, (*host).knownReferrers) {
		tag = i.askEarly(ctx, subject)
		defer tag.close()
	}
	answered := false
	if len(asked) > 0 {
		var found []ocispec.Descriptor
		rot := newRotation(i.client, &i.stats, what, asked)
		for {
			e, err := rot.pick(ctx)
			if err != nil {
				// All are out: without the API, with none to show, or refusing.
				if ctx.Err() == nil && (answered || errors.Is(err, errNoReferrersAPI) || errors.Is(err, ErrNotFound)) {
					break
				}
				return nil, err
			}
			if found, err = i.referrersFrom(ctx, e.host, subject, artifactType); err == nil {
				answered = true
				// A mirror that caches may have the image without what refers to it.
				if len(found) > 0 || e.namespace == "" {
					return found, nil
				}
				err = fmt.Errorf("%s: %w: %w", e.name, errNoReferrers, ErrNotFound)
			}
			rot.failed(ctx, e, err)
		}
	}
	if answered {
		return nil, nil
	}
	if tag == nil {
		tag = i.askEarly(ctx, subject)
		defer tag.close()
	}
	<-tag.done
	all, err := tag.index, tag.err
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	i.complete(ctx, all.Manifests)
	return ofType(all.Manifests, artifactType), nil
}

// early is the index at the fallback tag, asked for before it is known to be needed.
type early struct {
	stop  context.CancelFunc
	done  chan struct{}
	index ocispec.Index
	err   error
}

// askEarly asks for the index at the fallback tag. Pair it with close.
func (i *Image) askEarly(ctx context.Context, subject digest.Digest) *early {
	e := &early{done: make(chan struct{})}
	ctx, e.stop = context.WithCancel(ctx)
	go func() {
		defer close(e.done)
		e.index, _, e.err = i.fallback(ctx, subject, nil, true)
	}()
	return e
}

func (e *early) close() {
	e.stop()
	<-e.done
}

// complete fills in types and annotations where the list lacks them. Older registries (and go-containerregistry's) take the type from
// the config, which of artifacts is the empty one, and leave the annotations out. What cannot be read stays as it is.
func (i *Image) complete(ctx context.Context, ds []ocispec.Descriptor) {
	left := maxUntyped
	for k := range ds {
		d := &ds[k]
		if d.ArtifactType != "" && d.ArtifactType != ocispec.MediaTypeEmptyJSON || d.MediaType != ocispec.MediaTypeImageManifest {
			continue
		}
		if left--; left < 0 {
			return
		}
		b, err := i.Manifest(ctx, *d)
		if err != nil {
			continue
		}
		var m ocispec.Manifest
		if json.Unmarshal(b, &m) == nil {
			d.ArtifactType = or(m.ArtifactType, m.Config.MediaType)
			if d.Annotations == nil {
				d.Annotations = m.Annotations
			}
		}
	}
}

// referrersFrom asks one host's API, page after page.
func (i *Image) referrersFrom(ctx context.Context, h *host, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	d := document{
		max: MaxManifest,
		call: call{
			method: http.MethodGet, rest: "referrers/" + subject.String(),
			header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
		},
	}
	if artifactType != "" {
		d.call.query = url.Values{"artifactType": {artifactType}}
	}
	var out []ocispec.Descriptor
	for page := 0; ; page++ {
		header, body, err := i.getFrom(ctx, h, &d)
		if err != nil {
			return nil, i.judgeReferrers(h, err)
		}
		index, err := parseReferrers(body)
		if err != nil {
			// A page for people, or for single-page applications, at an address that the host does not know.
			if page == 0 {
				h.setReferrers(false, time.Now())
				return nil, fmt.Errorf("%s: %w: %w: %w", h.name, err, errNoReferrersAPI, ErrNotFound)
			}
			return nil, fmt.Errorf("%s: %w", h.name, err)
		}
		h.setReferrers(true, time.Now())
		i.complete(ctx, index.Manifests)
		out = append(out, ofType(index.Manifests, artifactType)...)
		next, err := nextPage(header, h.url(i.repo.name, d.call.rest, d.call.query), h.namespace)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.name, err)
		}
		if next == nil {
			return out, nil
		}
		if d.max -= int64(len(body)); page+1 >= maxReferrerPages || len(out) > maxReferrers || d.max <= 0 {
			return nil, fmt.Errorf("%s: referrers of %s: %w", h.name, subject, ErrTooLarge)
		}
		d.call.url = next
	}
}

// judgeReferrers tells a host without the API from one that is in trouble.
func (i *Image) judgeReferrers(h *host, err error) error {
	var s *statusError
	if !errors.As(err, &s) {
		if errors.Is(err, errNotBlob) {
			h.setReferrers(false, time.Now())
			return fmt.Errorf("%w: %w: %w", err, errNoReferrersAPI, ErrNotFound)
		}
		return err
	}
	switch s.code {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented, http.StatusBadRequest:
		// A registry may say this of a repository that it does not have. That says nothing of its API.
		if !strings.Contains(s.detail, "NAME_UNKNOWN") {
			h.setReferrers(false, time.Now())
		}
		return fmt.Errorf("%s: status %d: %w: %w", h.name, s.code, errNoReferrersAPI, ErrNotFound)
	case http.StatusUnauthorized, http.StatusForbidden:
		// Some refuse whatever they do not know. If it is meant, the fallback tag is refused as well.
		return fmt.Errorf("%s: status %d: %w: %w", h.name, s.code, errNoReferrersAPI, ErrNotFound)
	}
	return err
}

// parseReferrers reads an image index and leaves out entries that name no content.
func parseReferrers(b []byte) (ocispec.Index, error) {
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return index, fmt.Errorf("list of referrers: %w", err)
	}
	if index.Manifests == nil || (index.MediaType != "" && index.MediaType != ocispec.MediaTypeImageIndex) {
		return index, fmt.Errorf("list of referrers: it is no image index (media type %q)", printable(index.MediaType, 80))
	}
	if len(index.Manifests) > maxReferrers {
		return index, fmt.Errorf("list of referrers: %d entries: %w", len(index.Manifests), ErrTooLarge)
	}
	valid := index.Manifests[:0]
	for _, d := range index.Manifests {
		if d.Digest.Validate() == nil && d.Size >= 0 && d.Size <= MaxManifest {
			valid = append(valid, d)
		}
	}
	index.Manifests = valid
	return index, nil
}

// ofType filters by artifact type, whether the registry has done so (OCI-Filters-Applied) or not.
func ofType(in []ocispec.Descriptor, artifactType string) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for _, d := range in {
		if artifactType == "" || d.ArtifactType == artifactType {
			out = append(out, d)
		}
	}
	return out
}

// nextPage reads a Link header (RFC 8288) with rel="next": an address at the same host, or nil.
func nextPage(header http.Header, base *url.URL, namespace string) (*url.URL, error) {
	for _, line := range header.Values("Link") {
		for _, link := range strings.Split(line, ",") {
			addr, params, ok := strings.Cut(strings.TrimSpace(link), ">")
			if !ok || !strings.HasPrefix(addr, "<") {
				continue
			}
			p := strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(params), " ", ""), `"`, "")
			if !strings.Contains(p+";", ";rel=next;") {
				continue
			}
			u, err := base.Parse(addr[1:])
			if err != nil || u.Host != base.Host {
				return nil, fmt.Errorf("next page of the referrers is at another host: %q", printable(addr, 100))
			}
			u.Scheme = base.Scheme // behind a proxy a registry may not know its own
			if q := u.Query(); namespace != "" && q.Get("ns") == "" {
				q.Set("ns", namespace)
				u.RawQuery = q.Encode()
			}
			return u, nil
		}
	}
	return nil, nil
}

// fallbackTag is the tag under which the referrers of a manifest are listed where there is no API.
func fallbackTag(subject digest.Digest) string {
	alg, hex := subject.Algorithm().String(), subject.Encoded()
	return alg[:min(len(alg), 32)] + "-" + hex[:min(len(hex), 64)]
}

// fallback fetches the index at the fallback tag, from hosts (nil: all that may resolve tags).
func (i *Image) fallback(ctx context.Context, subject digest.Digest, hosts []*host, eager bool) (ocispec.Index, []byte, error) {
	var index ocispec.Index
	var raw []byte
	tag := fallbackTag(subject)
	err := i.get(ctx, document{
		what: fmt.Sprintf("referrers at tag %s of %s", tag, i.ref), max: MaxManifest,
		caps: docker.HostCapabilityPull | docker.HostCapabilityResolve, only: hosts,
		call: call{
			method: http.MethodGet, rest: "manifests/" + tag, header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}}, eager: eager,
		},
		use: func(_ *host, _ http.Header, b []byte) (err error) {
			if index, err = parseReferrers(b); err != nil {
				return fmt.Errorf("%w: %w", err, ErrCorrupt)
			}
			raw = b
			return nil
		},
	})
	return index, raw, err
}
