package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
)

// restarted is a snapshotter with images and a container of each, after a restart in which nothing
// is mounted yet.
func restarted(
	t *testing.T, images ...testImage,
) (*Snapshotter, *fakeLayers, map[string][]mount.Mount) {
	t.Helper()
	root, layers := t.TempDir(), newFakeLayers(t)
	s := open(t, root, layers)
	before := map[string][]mount.Mount{}
	for _, img := range images {
		mounts, err := s.Prepare(t.Context(), img.ref, mustPull(t, s, img))
		if err != nil {
			t.Fatal(err)
		}
		before[img.ref] = mounts
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	layers.restart()
	return open(t, root, layers), layers, before
}

func TestRestore(t *testing.T) {
	a, b := imageOf("a", "base", "a"), imageOf("b", "base", "b")
	s, layers, before := restarted(t, a, b)
	if err := s.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Restored != 3 || st.RestoreErrors != 0 {
		t.Errorf("Stats = %+v", st)
	}
	for _, c := range layers.mountCalls() {
		if c.Manifest == "" || c.Ref == "" || c.DiffID == "" {
			t.Errorf("Mount(%+v)", c)
		}
		base := []Below{{a.layers[0], layers.path(a.layers[0])}}
		if c.Digest != a.layers[0] && !reflect.DeepEqual(c.below, base) {
			t.Errorf("below %s are %v, want %v", c.Digest, c.below, base)
		}
	}
	for key, want := range before {
		if got, err := s.Mounts(t.Context(), key); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Mounts(%s) = %v, %v; before the restart %v", key, got, err, want)
		}
	}
}

// TestDisplaced: what somebody has unmounted is mounted again before containerd is told of it.
func TestDisplaced(t *testing.T) {
	img := imageOf("a", "base", "a")
	s, layers, before := restarted(t, img)
	for _, d := range img.layers {
		if err := s.Restore(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(layers.path(d)); err != nil {
			t.Fatal(err)
		}
		calls := len(layers.mountCalls())
		if got, err := s.Mounts(t.Context(), img.ref); err != nil ||
			!reflect.DeepEqual(got, before[img.ref]) {
			t.Errorf("Mounts = %v, %v; before %v", got, err, before[img.ref])
		}
		if more := layers.mountCalls()[calls:]; len(more) != 1 || more[0].Digest != d {
			t.Errorf("mounted again: %v, want %s", more, d)
		}
	}
}

// TestRestoreLowestFirst: all that lies under a layer is mounted when it is.
func TestRestoreLowestFirst(t *testing.T) {
	img := numbered("image", 20)
	s, layers, _ := restarted(t, img)
	layers.hook(func(_ context.Context, l Layer) (Mounted, error) {
		for _, d := range img.layers {
			if d == l.Digest {
				return Mounted{}, errDefault
			}
			if !layers.isMounted(d) {
				return Mounted{}, errors.New(d.String() + " is not mounted")
			}
		}
		return Mounted{}, errDefault
	})
	if err := s.Restore(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWithoutRestore: a snapshot mounts what it needs itself, once, and nothing else.
func TestWithoutRestore(t *testing.T) {
	a, b := imageOf("a", "base", "a"), imageOf("b", "base", "b")
	s, layers, before := restarted(t, a, b)
	for range 2 {
		if got, err := s.Mounts(t.Context(), "a"); err != nil ||
			!reflect.DeepEqual(got, before["a"]) {
			t.Errorf("Mounts = %v, %v; before the restart %v", got, err, before["a"])
		}
	}
	if n := len(layers.mountCalls()); n != 2 || layers.isMounted(b.layers[1]) {
		t.Errorf("%d mounts, other image mounted: %v", n, layers.isMounted(b.layers[1]))
	}
}

// TestMountsWait: while a layer hangs, snapshots that show it wait as long as their callers do, and
// others do not wait.
func TestMountsWait(t *testing.T) {
	a, b := imageOf("a", "a"), imageOf("b", "b")
	s, layers, _ := restarted(t, a, b)
	release := make(chan struct{})
	layers.hook(func(_ context.Context, l Layer) (Mounted, error) {
		if l.Digest == a.layers[0] {
			<-release
		}
		return Mounted{}, errDefault
	})
	restore := make(chan error, 1)
	go func() { restore <- s.Restore(t.Context()) }()

	if _, err := s.Mounts(t.Context(), "b"); err != nil {
		t.Errorf("a snapshot of other layers: %v", err)
	}
	for len(layers.mountCalls()) < 2 {
		time.Sleep(time.Millisecond)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if mounts, err := s.Mounts(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller in a hurry got %v, %v", mounts, err)
	}
	if mounts, err := s.View(short, "view", servedPrefix+a.chains[0].String()); !errors.Is(err,
		context.DeadlineExceeded) {
		t.Errorf("a new view got %v, %v", mounts, err)
	}
	patient := make(chan error, 1)
	go func() {
		_, err := s.Mounts(t.Context(), "a")
		patient <- err
	}()
	close(release)
	if err := errors.Join(<-patient, <-restore); err != nil {
		t.Error(err)
	}
	if n := len(layers.mountCalls()); n != 2 {
		t.Errorf("%d mounts, want one for each layer", n)
	}
}

// TestRestoreError: a layer that cannot be mounted makes an error that names it, for those that
// show it, until it can.
func TestRestoreError(t *testing.T) {
	a, b := imageOf("a", "base", "broken", "top"), imageOf("b", "base", "b")
	s, layers, before := restarted(t, a, b)
	broken := errors.New("device is damaged")
	layers.hook(func(_ context.Context, l Layer) (Mounted, error) {
		if l.Digest == a.layers[1] {
			return Mounted{}, broken
		}
		return Mounted{}, errDefault
	})
	err := s.Restore(t.Context())
	if !errors.Is(err, broken) || strings.Count(err.Error(), broken.Error()) != 1 {
		t.Errorf("Restore = %v, want the error once", err)
	}
	_, err = s.Mounts(t.Context(), "a")
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), a.layers[1].String()) ||
		!strings.Contains(err.Error(), `of a`) {
		t.Errorf("Mounts = %v, want one that names layer and reference", err)
	}
	if _, err := s.Mounts(t.Context(), "b"); err != nil {
		t.Errorf("another image: %v", err)
	}
	layers.hook(nil)
	if got, err := s.Mounts(t.Context(), "a"); err != nil || !reflect.DeepEqual(got, before["a"]) {
		t.Errorf("after repair: %v, %v", got, err)
	}
}

// TestRestoreElsewhere: a layer that Layers shows at another directory than before is there for
// containers that start from then on.
func TestRestoreElsewhere(t *testing.T) {
	s, layers, _ := restarted(t, imageOf("a", "a"))
	elsewhere := t.TempDir()
	layers.hook(func(context.Context, Layer) (Mounted, error) {
		return Mounted{Dir: elsewhere}, nil
	})
	if err := s.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	mounts, err := s.Mounts(t.Context(), "a")
	if err != nil || !strings.Contains(fmt.Sprint(mounts), elsewhere) {
		t.Errorf("mounts %v, %v, want some of %s", mounts, err, elsewhere)
	}
}

// TestOnce: those who wait share one failure, but not that of a caller who gave up.
func TestOnce(t *testing.T) {
	for _, tc := range []struct {
		name  string
		err   error // of the first attempt
		tries int
	}{
		{"success", nil, 1},
		{"failure is shared", errors.New("damaged"), 1},
		{"somebody gave up", context.Canceled, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r restored
				tries := 0
				mount := func() error {
					if tries++; tries > 1 {
						return nil
					}
					time.Sleep(time.Second)
					return tc.err
				}
				results := make(chan error, 3)
				for range 3 {
					go func() { results <- r.once(t.Context(), "1", mount) }()
				}
				for range 3 {
					if err := <-results; err != nil && !errors.Is(err, tc.err) {
						t.Error(err)
					}
				}
				if tries != tc.tries {
					t.Errorf("%d tries, want %d", tries, tc.tries)
				}
				if err := r.once(t.Context(), "1", mount); err != nil {
					t.Errorf("later: %v", err)
				}
			})
		})
	}
}
