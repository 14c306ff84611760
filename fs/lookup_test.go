package fs

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/remote"
)

// answer has the registry answer requests whose path contains part by h.
func (w *world) answer(part string, h http.HandlerFunc) {
	odd := func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		h(rw, r)
		return true
	}
	w.odd.Store(&odd)
}

// status answers with an error.
func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// silence answers when its client has left.
func silence(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// mode mounts the lower layer in a table of its own, and returns how, and how long that took.
func (w *world) mode() (Mode, time.Duration) {
	w.t.Helper()
	table := w.open(testDir(w.t), Auto)
	start := time.Now()
	if _, err := table.Mount(w.t.Context(), w.layer(0), nil); err != nil {
		w.t.Fatal(err)
	}
	return table.Status()[0].Mode, time.Since(start)
}

// TestLookupFails: an index that cannot be looked for is none.
func TestLookupFails(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{"502": status(502), "silence": silence} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.asks = 300 * time.Millisecond
			w.index(nil)
			odd := func(rw http.ResponseWriter, r *http.Request) bool {
				lists := strings.Contains(r.URL.Path, "/referrers/") ||
					strings.Contains(r.URL.Path, "/manifests/sha256-")
				if lists {
					h(rw, r)
				}
				return lists
			}
			w.odd.Store(&odd)
			if mode, took := w.mode(); mode != Local || took > 10*time.Second {
				t.Errorf("mounted %s in %v", mode, took)
			}
			w.odd.Store(nil)
			if mode, _ := w.mode(); mode == Local {
				t.Error("mounted local, though there is an index")
			}
		})
	}
}

// TestTreesSilent: an index of which nothing comes is none, after a few seconds, and soon the next
// time, until the registry is seen to answer.
func TestTreesSilent(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	w.answer(w.indexed.Trees.Digest.String(), silence)
	table := w.open(testDir(t), Auto)
	for i, most := range []time.Duration{lookupTime + 5*time.Second, lookupLeast + 3*time.Second} {
		start := time.Now()
		if _, err := table.Mount(t.Context(), w.layer(0), nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > most {
			t.Errorf("mount %d took %v, want %v at most", i, took, most)
		}
		if mode := table.Status()[0].Mode; mode != Local {
			t.Errorf("mount %d is %s", i, mode)
		}
		if err := table.Remove(t.Context(), w.layers[0]); err != nil {
			t.Fatal(err)
		}
	}
	// It comes again, in twice the time that it is given now.
	w.odd.Store(nil)
	late := func(path string) {
		if strings.HasSuffix(path, w.indexed.Trees.Digest.String()) {
			time.Sleep(2 * lookupLeast)
		}
	}
	w.gate.Store(&late)
	if _, err := table.Mount(t.Context(), w.layer(0), nil); err != nil {
		t.Fatal(err)
	}
	if err := table.Remove(t.Context(), w.layers[0]); err != nil {
		t.Fatal(err)
	}
	im, err := table.o.Remote.Image(w.ref)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the registry is trusted again", func() bool {
		return im.Patience(t.Context(), remote.AboutBlob, time.Minute) == time.Minute
	})
	if _, err := table.Mount(t.Context(), w.layer(0), nil); err != nil {
		t.Fatal(err)
	}
	if mode := table.Status()[0].Mode; mode == Local {
		t.Error("mounted local, though the index comes again")
	}
}

// TestTreesSlow: an index is waited for as long as some of it comes, longer than pull_deadline.
func TestTreesSlow(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	w.answer(w.indexed.Trees.Digest.String(), func(rw http.ResponseWriter, r *http.Request) {
		half := len(w.trees) / 2
		odd := &slowWriter{ResponseWriter: rw, left: half, wait: 6 * time.Second}
		http.ServeContent(odd, r, "", time.Time{}, bytes.NewReader(w.trees))
	})
	if mode, took := w.mode(); mode == Local || took < 6*time.Second {
		t.Errorf("mounted %s in %v", mode, took)
	}
}

// slowWriter pauses once, when left bytes have been written.
type slowWriter struct {
	http.ResponseWriter
	left int
	wait time.Duration
}

func (s *slowWriter) Write(p []byte) (int, error) {
	n := 0
	if s.left > 0 {
		n = min(s.left, len(p))
		s.left -= n
		if _, err := s.ResponseWriter.Write(p[:n]); err != nil {
			return 0, err
		}
		if s.left > 0 {
			return n, nil
		}
		if err := http.NewResponseController(s.ResponseWriter).Flush(); err != nil {
			return n, err
		}
		time.Sleep(s.wait)
	}
	m, err := s.ResponseWriter.Write(p[n:])
	return n + m, err
}

// TestProfileBesideIndex: no layer waits for a profile that does not come with the list.
func TestProfileBesideIndex(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	im, err := w.client().Image(w.ref)
	if err != nil {
		t.Fatal(err)
	}
	p := &profile.Profile{
		Manifest: w.manifest, Runs: 1,
		Ranges: []profile.Range{{Layer: w.layers[0], Off: 0, Size: 512, Runs: 1}},
	}
	a, err := published.New(p, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	subject := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: w.manifest, Size: 1,
	}
	m := a.Manifest(subject)
	created := m.Annotations[ocispec.AnnotationCreated]
	m.Annotations = map[string]string{ocispec.AnnotationCreated: created}
	if err := im.PushBlob(t.Context(), a.Blob, bytes.NewReader(a.Content)); err != nil {
		t.Fatal(err)
	}
	d, err := im.PushReferrer(t.Context(), subject, m)
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	wait := func(path string) {
		if strings.HasSuffix(path, d.Digest.String()) {
			<-gate
		}
	}
	w.gate.Store(&wait)
	table := w.open(testDir(t), Auto)
	start := time.Now()
	if _, err := table.Mount(t.Context(), w.layer(0), nil); err != nil {
		t.Fatal(err)
	}
	if mode := table.Status()[0].Mode; mode == Local {
		t.Errorf("mounted %s after %v", mode, time.Since(start))
	}
	if all := table.Replays(); len(all) > 0 {
		t.Errorf("replays before the profile is here: %v", all)
	}
	close(gate)
	eventually(t, "the profile is replayed", func() bool { return len(table.Replays()) == 1 })
}

// TestRequestsOfPull: what is left of a pull's requests is counted from its beginning.
func TestRequestsOfPull(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	table := w.open(testDir(t), Auto)
	im, err := table.o.Remote.Image(w.ref)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * firstRequests {
		if _, err := im.Resolve(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.Mount(t.Context(), w.layer(0), nil); err != nil {
		t.Fatal(err)
	}
	p := pullOf(table)
	if p == nil || p.Requests() > firstRequests || p.RoundTrip() <= 0 {
		t.Errorf("%d requests of the pull, want %d at most", p.Requests(), firstRequests)
	}
}

// TestUnreachable: an image of a registry that does not answer at all is left to containerd, after
// a few seconds, and soon the next time.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.answer("/v2/", silence)
	table := w.open(testDir(t), Auto)
	for i, most := range []time.Duration{9 * time.Second, 5 * time.Second} {
		start := time.Now()
		_, err := table.Mount(t.Context(), w.layer(0), nil)
		if took := time.Since(start); !errors.Is(err, ErrUnavailable) || took > most {
			t.Errorf("mount %d took %v, %v", i, took, err)
		}
	}
}
