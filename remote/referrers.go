package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/remote/registry"
)

const (
	maxReferrerPages = 64
	maxReferrers     = 10000
	// maxUntyped is how many entries of a list have their manifests fetched because the list does
	// not say what they are.
	maxUntyped = 5
)

var errNoReferrersAPI = errors.New("no referrers API")

// Referrers returns the descriptors, annotations included, of the manifests whose subject is the
// given manifest and which have one of the artifact types (none given: any). No referrers are no
// error.
//
// Each host is asked for the referrers API, and for the fallback tag
// (https://github.com/opencontainers/distribution-spec, "Listing Referrers") where it has no API,
// is not known to have one, or lists entries without saying what they are. That a host has no API
// is remembered. Who is asked when, and for how long, is said at listing.
func (i *Image) Referrers(
	ctx context.Context, subject digest.Digest, types ...string,
) ([]ocispec.Descriptor, error) {
	err := subject.Validate()
	var set *registry.Hosts
	if err == nil {
		set, err = i.repo.Hosts(ctx)
	}
	if err == nil {
		q := &listing{image: i, subject: subject, types: types}
		var found []ocispec.Descriptor
		if found, err = q.ask(ctx, set.Naming()); err == nil {
			return found, nil
		}
	}
	return nil, fmt.Errorf("list of referrers: %w", err)
}

// answer asks one host for what is wanted. There may be an error and an answer, of the tag where
// the API failed, or of the first pages of several. troubled is called when an attempt fails that
// is made again.
func (q *listing) answer(
	ctx context.Context, h *registry.Host, troubled func(),
) ([]ocispec.Descriptor, error) {
	ctx, stop := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer stop()
	var atTag []ocispec.Descriptor
	var tells atomic.Bool // the tag has what is wanted
	askTag := sync.OnceValue(func() error {
		index, err := q.image.fallback(ctx, q.subject, h, troubled)
		atTag = index.Manifests
		tells.Store(len(q.annotated(atTag)) > 0)
		return err
	})
	api, tags := !h.LacksReferrers(), h.CanName()
	// One after the other they take two round trips where there is no API: both go together.
	if tags && api && !h.HasReferrers() {
		asking.Go(func() { _ = askTag() }) // its error is for those who wait for it
	}
	var list []ocispec.Descriptor
	var failed error
	if api {
		// An API in trouble is not waited for where the tag tells enough.
		ctx, enough := context.WithCancel(ctx)
		defer enough()
		var sure bool
		list, sure, failed = q.pages(ctx, h, func() {
			troubled()
			if tells.Load() {
				enough()
			}
		})
		if errors.Is(failed, errNoReferrersAPI) {
			failed = nil
		} else if failed == nil && (sure || len(q.annotated(list)) > 0) {
			return q.complete(ctx, h, list), nil
		}
	}
	if tags {
		if err := askTag(); err == nil {
			list = merge(list, atTag)
		} else if !errors.Is(err, ErrNotFound) {
			failed = cmp.Or(failed, err)
		}
	}
	return q.complete(ctx, h, list), failed
}

// merge adds the entries at the tag to those that the API lists, and says by them what these are.
func merge(list, tag []ocispec.Descriptor) []ocispec.Descriptor {
	list = slices.DeleteFunc(slices.Clone(list), func(d ocispec.Descriptor) bool {
		return slices.ContainsFunc(tag, func(t ocispec.Descriptor) bool {
			return t.Digest == d.Digest && !isUntyped(t)
		})
	})
	for _, t := range tag {
		same := func(d ocispec.Descriptor) bool { return d.Digest == t.Digest }
		if !slices.ContainsFunc(list, same) {
			list = append(list, t)
		}
	}
	return list
}

// isUntyped tells whether a list does not say what an entry is. Older registries (and
// go-containerregistry's) take the type from the config, which of artifacts is the empty one.
func isUntyped(d ocispec.Descriptor) bool {
	return d.MediaType == ocispec.MediaTypeImageManifest &&
		(d.ArtifactType == "" || d.ArtifactType == ocispec.MediaTypeEmptyJSON)
}

// annotated returns the entries of the wanted types that have their annotations.
func (q *listing) annotated(list []ocispec.Descriptor) []ocispec.Descriptor {
	return slices.DeleteFunc(ofTypes(list, q.types), func(d ocispec.Descriptor) bool {
		return d.Annotations == nil
	})
}

// complete returns the wanted entries of a list. Where it says of no entry that it is one, the
// manifests of those of which it says nothing are fetched, the largest first: annotations that are
// worth listing take room. It also fills in annotations that the list lacks.
func (q *listing) complete(
	ctx context.Context, h *registry.Host, list []ocispec.Descriptor,
) []ocispec.Descriptor {
	found := ofTypes(list, q.types)
	var unclear []*ocispec.Descriptor
	for k := range found {
		if found[k].Annotations == nil || isUntyped(found[k]) {
			unclear = append(unclear, &found[k])
		}
	}
	if len(found) == 0 {
		found = slices.DeleteFunc(slices.Clone(list), func(d ocispec.Descriptor) bool {
			return !isUntyped(d)
		})
		for k := range found {
			unclear = append(unclear, &found[k])
		}
	}
	slices.SortStableFunc(unclear, func(a, b *ocispec.Descriptor) int {
		return int(b.Size - a.Size) // both are at most MaxManifest
	})
	var reading sync.WaitGroup
	for _, d := range unclear[:min(len(unclear), maxUntyped)] {
		reading.Go(func() { q.image.fillIn(ctx, h, d) })
	}
	reading.Wait()
	return ofTypes(found, q.types)
}

// fillIn fills in type and annotations of an entry from its manifest. If that cannot be read the
// entry stays as it is.
func (i *Image) fillIn(ctx context.Context, h *registry.Host, d *ocispec.Descriptor) {
	b := i.keptManifest(d.Digest)
	if b == nil {
		got, err := i.manifest(ctx, d.Digest.String(), d.Digest, h)
		if err != nil {
			return
		}
		b = got.Data
	}
	var m ocispec.Manifest
	if json.Unmarshal(b, &m) == nil {
		d.ArtifactType = cmp.Or(m.ArtifactType, m.Config.MediaType)
		if d.Annotations == nil {
			d.Annotations = m.Annotations
		}
	}
}

// pages asks one host's API, page after page. sure says that the host has one, and that the list is
// whole and says what its entries are. What came before an error counts.
func (q *listing) pages(
	ctx context.Context, h *registry.Host, troubled func(),
) (list []ocispec.Descriptor, sure bool, err error) {
	i := q.image
	var header http.Header
	var body []byte
	d := document{
		what: h.Name, max: MaxManifest, only: []*registry.Host{h}, failed: troubled, anyType: true,
		use: func(_ *registry.Host, head http.Header, b []byte) error {
			header, body = head, b
			return nil
		},
		call: registry.Call{
			Method: http.MethodGet, Rest: "referrers/" + q.subject.String(), Aside: true,
			Header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
		},
	}
	if len(q.types) == 1 {
		d.call.Query = url.Values{"artifactType": {q.types[0]}}
	}
	base := i.repo.URL(h, &d.call)
	sure = true
	seen := map[string]bool{base.String(): true}
	for page := 0; ; page++ {
		if err := i.get(ctx, d); err != nil {
			return list, false, i.judgeReferrers(h, err)
		}
		index, err := parseReferrers(body)
		if err != nil {
			// A page for people, or for single-page applications, at an address that the host
			// does not know.
			if page == 0 {
				h.SetReferrers(false)
				err = fmt.Errorf("%w: %w", err, errNoReferrersAPI)
			}
			return list, false, fmt.Errorf("%s: %w", h.Name, err)
		}
		list = append(list, index.Manifests...)
		sure = sure && index.Manifests != nil && !slices.ContainsFunc(index.Manifests, isUntyped)
		next := nextPage(header, base, h.Namespace)
		if next == nil || seen[next.String()] {
			if sure {
				h.SetReferrers(true)
			}
			return list, sure, nil
		}
		d.max -= int64(len(body))
		if page+1 >= maxReferrerPages || len(list) > maxReferrers || d.max <= 0 {
			return list, false, fmt.Errorf("%s: %w", h.Name, ErrTooLarge)
		}
		seen[next.String()] = true
		d.call.URL = next
	}
}

// judgeReferrers tells a host without the API from one that is in trouble.
func (i *Image) judgeReferrers(h *registry.Host, err error) error {
	var s *registry.StatusError
	if !errors.As(err, &s) {
		return err
	}
	switch s.Code {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable,
		http.StatusNotImplemented, http.StatusBadRequest:
		// A registry may say this of a repository that it does not have. That says nothing of its
		// API, and neither does what the target of a redirect says.
		if !strings.Contains(s.Detail, "NAME_UNKNOWN") && !s.Target {
			h.SetReferrers(false)
		}
		return fmt.Errorf("%w: %w", err, errNoReferrersAPI)
	case http.StatusUnauthorized, http.StatusForbidden:
		// Some refuse whatever they do not know. If it is meant, the fallback tag is refused too.
		return fmt.Errorf("%w: %w", err, errNoReferrersAPI)
	}
	return err
}

// parseReferrers reads an image index and leaves out entries that name no content. Of a list that
// is missing, or null, Manifests is nil.
func parseReferrers(b []byte) (ocispec.Index, error) {
	var index struct {
		specs.Versioned
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
	}
	out := ocispec.Index{}
	if err := json.Unmarshal(b, &index); err != nil {
		return out, err
	}
	ours := index.MediaType == ocispec.MediaTypeImageIndex
	if !ours && (index.MediaType != "" || index.Manifests == nil && index.SchemaVersion != 2) {
		return out, fmt.Errorf("it is no image index (media type %q)",
			registry.Printable(index.MediaType, 80))
	}
	out.Versioned, out.MediaType = index.Versioned, index.MediaType
	if index.Manifests == nil {
		return out, nil
	}
	if err := json.Unmarshal(index.Manifests, &out.Manifests); err != nil {
		return out, err
	}
	if len(out.Manifests) > maxReferrers {
		return out, fmt.Errorf("%d entries: %w", len(out.Manifests), ErrTooLarge)
	}
	out.Manifests = slices.DeleteFunc(out.Manifests, func(d ocispec.Descriptor) bool {
		return d.Digest.Validate() != nil || d.Size < 0 || d.Size > MaxManifest
	})
	return out, nil
}

// ofTypes filters by artifact type, whether the registry has done so (OCI-Filters-Applied) or not.
func ofTypes(in []ocispec.Descriptor, types []string) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for _, d := range in {
		if len(types) == 0 || slices.Contains(types, d.ArtifactType) {
			out = append(out, d)
		}
	}
	return out
}

// nextPage reads a Link header (RFC 8288) with rel="next": an address at the same host, or nil.
// Nobody is asked at another host, because the address is what a proxy does not rewrite: an
// internal name, as a rule.
func nextPage(header http.Header, base *url.URL, namespace string) *url.URL {
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
				return nil
			}
			u.Scheme = base.Scheme // behind a proxy a registry may not know its own
			if q := u.Query(); namespace != "" && q.Get("ns") == "" {
				q.Set("ns", namespace)
				u.RawQuery = q.Encode()
			}
			return u
		}
	}
	return nil
}

// fallbackTag is the tag under which the referrers of a manifest are listed where there is no API.
func fallbackTag(subject digest.Digest) string {
	alg, hex := subject.Algorithm().String(), subject.Encoded()
	return alg[:min(len(alg), 32)] + "-" + hex[:min(len(hex), 64)]
}

// fallback fetches the index at the fallback tag from one host. With troubled, which is told of
// attempts that fail, it is for a look-up.
func (i *Image) fallback(
	ctx context.Context, subject digest.Digest, h *registry.Host, troubled func(),
) (ocispec.Index, error) {
	var index ocispec.Index
	tag := fallbackTag(subject)
	err := i.get(ctx, document{
		what: fmt.Sprintf("referrers at tag %s of %s", tag, i.ref), max: MaxManifest,
		only: []*registry.Host{h}, failed: troubled,
		call: registry.Call{
			Method: http.MethodGet, Rest: "manifests/" + tag, Aside: troubled != nil,
			Header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
		},
		use: func(_ *registry.Host, _ http.Header, b []byte) (err error) {
			if index, err = parseReferrers(b); err != nil {
				return fmt.Errorf("%w: %w", err, ErrCorrupt)
			}
			return nil
		},
	})
	return index, err
}
