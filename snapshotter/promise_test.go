package snapshotter

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// promising is fakeLayers that promise every layer, and mount none before come is closed.
type promising struct {
	*fakeLayers
	come   chan struct{}
	diffID digest.Digest // "": what was asked for

	mu       sync.Mutex
	promised []digest.Digest
}

func newPromising(t *testing.T) *promising {
	p := &promising{fakeLayers: newFakeLayers(t), come: make(chan struct{})}
	p.hook(func(ctx context.Context, _ Layer) (Mounted, error) {
		select {
		case <-p.come:
			return Mounted{}, errDefault
		case <-ctx.Done():
			return Mounted{}, ctx.Err()
		}
	})
	return p
}

func (p *promising) Promise(_ context.Context, l Layer, _ []Below) (Mounted, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.promised = append(p.promised, l.Digest)
	id := l.DiffID
	if p.diffID != "" {
		id = p.diffID
	}
	return Mounted{Dir: p.path(l.Digest), Size: 1 << 20, Inodes: 3, DiffID: id}, true
}

// TestPromise: a pull ends before its layers have come; a container waits for them.
func TestPromise(t *testing.T) {
	layers, img := newPromising(t), imageOf("a", "base", "middle", "top")
	s := open(t, t.TempDir(), layers)
	top := mustPull(t, s, img)
	if got := s.Stats(); got.Served != 3 {
		t.Errorf("Stats = %+v, want 3 served", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if m, err := s.Prepare(ctx, "early", top); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Prepare before the layers have come: %v, %v", m, err)
	}
	for _, l := range img.layers {
		if layers.isMounted(l) {
			t.Errorf("layer %s is mounted", l)
		}
	}
	close(layers.come)
	mounts, err := s.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Stats(); got.Restored != 0 || got.RestoreErrors != 0 {
		t.Errorf("Stats = %+v: nothing was restored", got)
	}
	for _, l := range img.layers {
		if !layers.isMounted(l) {
			t.Errorf("layer %s is not mounted", l)
		}
		if !strings.Contains(strings.Join(mounts[0].Options, ","), layers.path(l)) {
			t.Errorf("mounts %v without %s", mounts, layers.path(l))
		}
	}
}

// TestBrokenPromise: a layer that does not come after all costs the container that needs it an
// error, and the next tries again.
func TestBrokenPromise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layers, img := newPromising(t), imageOf("a", "base", "top")
		s := open(t, t.TempDir(), layers)
		layers.hook(func(context.Context, Layer) (Mounted, error) {
			return Mounted{}, errors.New("gone")
		})
		top := mustPull(t, s, img)
		synctest.Wait()
		if _, err := s.Prepare(t.Context(), "first", top); err == nil ||
			!strings.Contains(err.Error(), "gone") {
			t.Fatalf("Prepare: %v", err)
		}
		layers.hook(nil)
		if _, err := s.Prepare(t.Context(), "second", top); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPromisedAfterRestart: what was promised when the process ended comes in the next one.
func TestPromisedAfterRestart(t *testing.T) {
	root, layers, img := t.TempDir(), newPromising(t), imageOf("a", "base", "top")
	s := open(t, root, layers)
	top := mustPull(t, s, img)
	if err := s.Close(); err != nil { // who waits for layers gives up
		t.Fatal(err)
	}
	layers.restart()
	s = open(t, root, layers)
	if err := s.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), "container", top); err != nil {
		t.Fatal(err)
	}
	for _, l := range img.layers {
		if _, err := os.Stat(layers.path(l)); err != nil {
			t.Error(err)
		}
	}
}

// TestFalsePromise: a promise of another tar than the chain ID says makes no snapshot of that
// chain.
func TestFalsePromise(t *testing.T) {
	layers, img := newPromising(t), imageOf("a", "base")
	layers.diffID = digest.FromString("another tar")
	s := open(t, t.TempDir(), layers)
	_, unpacked, err := pull(t.Context(), s, img)
	if err != nil || unpacked != 1 {
		t.Errorf("pull: %d layers unpacked, %v, want containerd to unpack it", unpacked, err)
	}
}
