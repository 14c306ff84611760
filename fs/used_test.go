package fs

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/fetch"
)

// TestRemovedIsNotCounted: what a removed layer took counts no more, however far it had come, and
// however often it comes and goes.
func TestRemovedIsNotCounted(t *testing.T) {
	const files, size = 16, 128 << 10
	blob, lines := manyFiles(t, 21, files, size)
	w := newWorld(t, blob)
	w.index(nil)
	root := testDir(t)
	table := w.openWith(Options{Root: root, Mode: EROFS, Fetch: fetch.Options{Fill: fetch.None},
		Cache: cache.Options{Size: 4 * files * size}})
	empty := table.Cache().Status().Used
	for round := range 3 {
		dir := w.mountAll(table)[0]
		if round > 0 {
			mustList(t, dir, lines)
		}
		if used := table.Cache().Status().Used - empty; round > 0 && used < files*size {
			t.Errorf("round %d: %d bytes of %d are counted", round, used, files*size)
		}
		if err := table.Remove(t.Context(), w.layers[0]); err != nil {
			t.Fatal(err)
		}
		if c := table.Cache().Status(); c.Used != empty || c.Full {
			t.Errorf("round %d: %d bytes are counted, %d are on disk", round, c.Used,
				usedBy(t, root+"/layers"))
		}
	}
}

// TestGivenUpStays: what was given up does not come back by itself, not even where it was on its
// way. It comes when somebody reads.
func TestGivenUpStays(t *testing.T) {
	const files, size = 64, 128 << 10
	for name, whole := range map[string]bool{"whole": true, "on its way": false} {
		t.Run(name, func(t *testing.T) {
			blob, lines := manyFiles(t, 22, files, size)
			w := newWorld(t, blob)
			w.index(nil)
			slow := fetch.Options{Fill: fetch.All}
			if !whole {
				slow.Bandwidth = 2 << 20
			}
			unused := func(context.Context) (map[digest.Digest]bool, error) { return nil, nil }
			table := w.openWith(Options{Root: testDir(t), Mode: Auto, Fetch: slow,
				Cache: cache.Options{InUse: unused}})
			dir := w.mountAll(table)[0]
			eventually(t, "the fill is at work", func() bool {
				s := table.Status()[0]
				return s.Present > 0 && (!whole || s.Mode == Local)
			})
			if err := table.Cache().GiveUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s := table.Status()[0]; s.Present != 0 {
				t.Fatalf("%d bytes are left", s.Present)
			}
			time.Sleep(fillDelay + time.Second)
			if s := table.Status()[0]; s.Present != 0 {
				t.Errorf("%d bytes have come back by themselves", s.Present)
			}
			mustList(t, dir, lines[:1])
			eventually(t, "the fill goes on", func() bool {
				s := table.Status()[0]
				return s.Present > s.Total/4
			})
		})
	}
}

// TestRemovedWhileCompleting: a layer that goes while it becomes whole, and comes again, is no
// error.
func TestRemovedWhileCompleting(t *testing.T) {
	const files, size = 16, 128 << 10
	blob, lines := manyFiles(t, 23, files, size)
	w := newWorld(t, blob)
	w.index(nil)
	var log errorLog
	table := w.openWith(Options{Root: testDir(t), Mode: Auto, Log: slog.New(&log)})
	for round := range 8 {
		mustList(t, w.mountAll(table)[0], lines) // all of it is here
		time.Sleep(time.Duration(round) * completeAfter / 5)
		if err := table.Remove(t.Context(), w.layers[0]); err != nil {
			t.Fatal(err)
		}
	}
	w.mountAll(table)
	time.Sleep(2 * completeAfter)
	for _, line := range log.all() {
		t.Error(line)
	}
}

// errorLog keeps what is worse than information.
type errorLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *errorLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines
}

// Enabled implements slog.Handler.
func (l *errorLog) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

// Handle implements slog.Handler.
func (l *errorLog) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return nil
}

// WithAttrs implements slog.Handler.
func (l *errorLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler.
func (l *errorLog) WithGroup(string) slog.Handler { return l }
