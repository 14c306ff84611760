package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

func unavailable(context.Context, Layer) (Mounted, error) {
	return Mounted{}, fmt.Errorf("no credentials for registry: %w", ErrUnavailable)
}

// TestFallback: from the first layer that cannot be served on, containerd unpacks, and it is told
// once.
func TestFallback(t *testing.T) {
	var log bytes.Buffer
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers, WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	img := numbered("example.org/app:1", 5)
	layers.hook(func(ctx context.Context, l Layer) (Mounted, error) {
		if l.Digest == img.layers[2] {
			return unavailable(ctx, l)
		}
		return Mounted{}, errDefault
	})
	top, unpacked, err := pull(t.Context(), s, img)
	if err != nil || unpacked != 3 {
		t.Fatalf("%d layers unpacked, want 3; err %v", unpacked, err)
	}
	if n := len(layers.mountCalls()); n != 3 {
		t.Errorf("%d mounts tried, want 3", n)
	}
	list := s.Fallbacks()
	if len(list) != 1 || list[0].Ref != img.ref || list[0].Layer != img.layers[2] ||
		!strings.HasPrefix(list[0].Reason, "no credentials") ||
		strings.Contains(list[0].Reason, img.ref) || time.Since(list[0].Time) > time.Minute {
		t.Errorf("Fallbacks = %+v", list)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 ||
		!strings.Contains(log.String(), "no credentials") {
		t.Errorf("%d warnings, want 1:\n%s", n, log.String())
	}
	if st := s.Stats(); st.Served != 2 || st.Fallbacks != 3 {
		t.Errorf("Stats = %+v", st)
	}
	mounts, err := s.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	dir := mountAt(t, mounts)
	if got, want := readFile(t, dir, "all"), img.layers[1].String(); got != want {
		t.Errorf("container sees %s, want %s", got, want)
	}
}

// TestFallbackThenServed: the next pull tries again what is not there yet.
func TestFallbackThenServed(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	img := imageOf("image", "base")
	layers.hook(unavailable)
	if _, err := s.Prepare(t.Context(), "first", "",
		snapshots.WithLabels(img.labels(0))); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "first"); err != nil { // containerd could not fetch it either
		t.Fatal(err)
	}
	layers.hook(nil)
	mustPull(t, s, img)
	if list := s.Fallbacks(); len(list) != 0 {
		t.Errorf("Fallbacks = %+v", list)
	}
}

// TestUnpackedParents: another image is served above a layer that containerd unpacked.
func TestUnpackedParents(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	now := time.Now()
	s.now = func() time.Time { return now }
	base, app := imageOf("base", "base"), imageOf("app", "base", "app")
	layers.hook(unavailable)
	parent, _, err := pull(t.Context(), s, base)
	if err != nil {
		t.Fatal(err)
	}
	// Another one has no label that tells its chain ID: containerd has imported it.
	for _, named := range []string{"ns/4/" + base.chains[0].String(), "ns/5/other"} {
		key := named + " active"
		if _, err := s.Prepare(t.Context(), key, ""); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), named, key); err != nil {
			t.Fatal(err)
		}
	}
	layers.hook(nil)
	now = now.Add(time.Hour)
	for parent, want := range map[string]bool{"ns/4/" + base.chains[0].String(): false,
		"ns/5/other": true} {
		_, unpacked, err := pullLayer(t.Context(), s, "key on "+parent, parent, app.labels(1))
		if err != nil || unpacked != want {
			t.Errorf("on %s: unpacked %v, want %v, err %v", parent, unpacked, want, err)
		}
	}
	now = now.Add(time.Hour)
	_, unpacked, err := pullLayer(t.Context(), s, "key", parent, app.labels(1))
	if err != nil || unpacked {
		t.Fatalf("unpacked %v, err %v", unpacked, err)
	}
	calls := layers.mountCalls()
	last := calls[len(calls)-1]
	if b := last.below[0]; b.Digest != "" || !strings.HasPrefix(b.Dir, s.snapshotsDir()) {
		t.Errorf("Mount(%+v)", last)
	}
}

// TestCanceledIsNoFallback: when the caller gave up, or Mount failed otherwise, containerd is not
// made to unpack.
func TestCanceledIsNoFallback(t *testing.T) {
	img := imageOf("image", "base")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	other := errors.New("disk full")
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
	}{
		{"canceled", canceled, context.Canceled},
		{"canceled while unavailable", canceled, ErrUnavailable},
		{"other", t.Context(), other},
	} {
		t.Run(tc.name, func(t *testing.T) {
			layers := newFakeLayers(t)
			s := open(t, t.TempDir(), layers)
			layers.hook(func(context.Context, Layer) (Mounted, error) { return Mounted{}, tc.err })
			mounts, err := s.Prepare(tc.ctx, "key", "", snapshots.WithLabels(img.labels(0)))
			if !errors.Is(err, tc.err) || len(s.Fallbacks()) != 0 || snapshotCount(t, s) != 0 {
				t.Errorf("Prepare = %v, %v; fallbacks %v", mounts, err, s.Fallbacks())
			}
		})
	}
}

func TestFallbacksAreBounded(t *testing.T) {
	var f fallbacks
	s := &Snapshotter{now: time.Now}
	now := time.Now()
	for i := range 3 * fallbackMax {
		img := numbered(fmt.Sprint("image-", i), 1)
		req, err := parseRequest(img.chains[0], img.labels(0))
		if err != nil {
			t.Fatal(err)
		}
		f.add(now.Add(time.Duration(i)*time.Second), req, "reason")
	}
	if len(f.images) > fallbackMax || len(f.chains) > int(fallbackPull/time.Second)+1 {
		t.Errorf("%d images, %d chains", len(f.images), len(f.chains))
	}
	if _, ok := f.images[image{"image-299", numbered("image-299", 1).manifest()}]; !ok {
		t.Error("the latest is gone")
	}
	s.now = func() time.Time { return now.Add(2 * fallbackKept) }
	s.fallbacks.images, s.fallbacks.chains = f.images, f.chains
	if list := s.Fallbacks(); len(list) != 0 {
		t.Errorf("%d are shown a day later", len(list))
	}
}
