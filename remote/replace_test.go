package remote

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"strings"
	"testing"

	reg "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// artifacts is a registry that refuses some manifests.
type artifacts struct {
	next    http.Handler
	refuses func(body string) bool
	deleted []string
	deletes bool
}

func (a *artifacts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/"):
		b, _ := io.ReadAll(r.Body)
		if a.refuses != nil && a.refuses(string(b)) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_INVALID","message":"config media type"}]}`)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
	case r.Method == http.MethodDelete:
		a.deleted = append(a.deleted, r.URL.Path)
		if !a.deletes {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
	}
	a.next.ServeHTTP(w, r)
}

// artifactImage pushes an image to a registry, and what an artifact needs.
func artifactImage(t *testing.T, a *artifacts, api bool) (*Image, ocispec.Descriptor) {
	t.Helper()
	a.next = reg.New(reg.WithReferrersSupport(api), reg.Logger(log.New(io.Discard, "", 0)))
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	i := mustImage(t, c, newServer(t, a)+"/a/b:1")
	empty := ocispec.DescriptorEmptyJSON
	if err := i.PushBlob(t.Context(), empty, bytes.NewReader(empty.Data)); err != nil {
		t.Fatal(err)
	}
	refuses := a.refuses
	a.refuses = nil
	image, _, err := i.putManifest(t.Context(), ocispec.MediaTypeImageManifest,
		fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":2},`+
			`"layers":[]}`, ocispec.MediaTypeImageManifest, empty.Digest), "1")
	if err != nil {
		t.Fatal(err)
	}
	a.refuses = refuses
	return i, image
}

func artifactOf(kind, name string) ocispec.Manifest {
	return ocispec.Manifest{
		ArtifactType: kind, Config: ocispec.DescriptorEmptyJSON,
		Layers:      []ocispec.Descriptor{ocispec.DescriptorEmptyJSON},
		Annotations: map[string]string{"name": name},
	}
}

// TestRefusedForms: a registry that refuses an artifact gets it in an older form, and who looks for
// its type finds it.
func TestRefusedForms(t *testing.T) {
	const kind = "application/vnd.test.v1"
	refuse := func(words ...string) func(string) bool {
		return func(body string) bool {
			for _, w := range words {
				if strings.Contains(body, w) {
					return true
				}
			}
			return false
		}
	}
	for name, c := range map[string]struct {
		refuses func(string) bool
		taken   bool
	}{
		"none":             {refuse(), true},
		"the empty config": {refuse(`"config":{"mediaType":"application/vnd.oci.empty`), true},
		"artifactType":     {refuse(`,"artifactType":"application/vnd.test.v1","config"`), true},
		"subjects too": {refuse(`"config":{"mediaType":"application/vnd.oci.empty`,
			`"subject"`), true},
		"all": {refuse(`"mediaType":"application/vnd.oci.image.manifest`), false},
	} {
		for _, api := range []bool{false, true} {
			if api && name == "subjects too" {
				continue // who has the API takes subjects
			}
			t.Run(fmt.Sprintf("%s, API %v", name, api), func(t *testing.T) {
				a := &artifacts{refuses: c.refuses}
				i, image := artifactImage(t, a, api)
				d, err := i.PushReferrer(t.Context(), image, artifactOf(kind, "x"))
				if !c.taken {
					if err == nil || !strings.Contains(err.Error(), "config media type") ||
						!strings.Contains(err.Error(), "takes no artifacts") {
						t.Errorf("refused with %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				list, err := i.Referrers(t.Context(), image.Digest, kind)
				if err != nil || len(list) != 1 || list[0].Digest != d.Digest ||
					list[0].Annotations["name"] != "x" {
					t.Errorf("found %+v, %v", list, err)
				}
			})
		}
	}
}

// TestReplacedReferrers: what a referrer takes the place of is neither listed any more nor kept
// where it may be deleted, and nothing else goes.
func TestReplacedReferrers(t *testing.T) {
	for _, api := range []bool{false, true} {
		for _, deletes := range []bool{false, true} {
			t.Run(fmt.Sprintf("API %v, deletes %v", api, deletes), func(t *testing.T) {
				a := &artifacts{deletes: deletes}
				i, image := artifactImage(t, a, api)
				other := artifactOf("theirs", "x")
				if _, err := i.PushReferrer(t.Context(), image, other); err != nil {
					t.Fatal(err)
				}
				var last digest.Digest
				for k := range 4 {
					old, err := i.Referrers(t.Context(), image.Digest, "ours")
					if err != nil {
						t.Fatal(err)
					}
					m := artifactOf("ours", fmt.Sprint(k))
					d, err := i.PushReferrer(t.Context(), image, m, old...)
					if err != nil {
						t.Fatal(err)
					}
					last = d.Digest
				}
				ours, err := i.Referrers(t.Context(), image.Digest, "ours")
				most := 1
				if api && !deletes {
					most = 4 // no more can be done
				}
				latest := func(d ocispec.Descriptor) bool { return d.Digest == last }
				if err != nil || len(ours) > most || !slices.ContainsFunc(ours, latest) {
					t.Errorf("ours: %d, %v", len(ours), err)
				}
				theirs, err := i.Referrers(t.Context(), image.Digest, "theirs")
				if err != nil || len(theirs) != 1 {
					t.Errorf("theirs: %d, %v", len(theirs), err)
				}
				if len(a.deleted) < 3 {
					t.Errorf("%d were to be deleted", len(a.deleted))
				}
				// The same once more changes nothing.
				m := artifactOf("ours", "3")
				if _, err := i.PushReferrer(t.Context(), image, m, ours...); err != nil {
					t.Error(err)
				}
				again, err := i.Referrers(t.Context(), image.Digest, "ours")
				if err != nil || len(again) == 0 {
					t.Errorf("ours: %d, %v", len(again), err)
				}
			})
		}
	}
}
