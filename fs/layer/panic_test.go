package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
)

// panicking is a body that panics after some bytes.
type panicking struct{ io.ReadCloser }

func (p panicking) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b[:min(len(b), 1000)])
	if n > 500 {
		panic("in a body")
	}
	return n, err
}

// trapped is a source whose bodies panic.
type trapped struct {
	*streaming
	armed bool
}

func (s *trapped) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b, err := s.streaming.Range(ctx, off, n)
	if err == nil && s.armed {
		b = panicking{b}
	}
	return b, err
}

// TestPanics: a panic in any goroutine of a fetch is an error of the reads that wait for it. It
// costs nobody else anything, and not the budget either.
func TestPanics(t *testing.T) {
	armed := false
	trap := func(where string) error {
		if armed {
			panic(where)
		}
		return nil
	}
	for name, set := range map[string]func(f *fixture, o *Options) (arm func(bool)){
		"opening": func(f *fixture, _ *Options) func(bool) {
			f.blob.fault = func(context.Context, int, []byte, int64) error {
				return trap("opening")
			}
			return func(on bool) { armed = on }
		},
		"body": func(f *fixture, o *Options) func(bool) {
			src := &trapped{streaming: streamed(f, o)}
			o.Blob = src
			return func(on bool) { src.armed = on }
		},
		"windows": func(f *fixture, _ *Options) func(bool) {
			f.windows.fault = func(context.Context, int, []byte, int64) error {
				return trap("windows")
			}
			return func(on bool) { armed = on }
		},
		"store": func(f *fixture, _ *Options) func(bool) {
			f.store.write = func(int) error { return trap("store") }
			return func(on bool) { armed = on }
		},
	} {
		for _, prio := range []line.Priority{line.Demand, line.Replay, line.Background} {
			for _, rtt := range []time.Duration{0, farAway} {
				t.Run(fmt.Sprint(name, " ", prio, " ", rtt), func(t *testing.T) {
					var arm func(bool)
					f := setup(t, newSample(t), func(f *fixture, o *Options) { arm = set(f, o) })
					if rtt > 0 {
						f.host().Answered(rtt)
					}
					off, n := f.span(20)
					arm(true)
					err := f.Fetch(t.Context(), off, 5*n, prio)
					served := name == "store" && prio == line.Demand // before it is written
					if err == nil && !served ||
						err != nil && !strings.Contains(err.Error(), "panic") {
						t.Errorf("fetch: %v", err)
					}
					f.wait()
					arm(false)
					f.mustRead(0, f.Size())
					f.wait()
					f.nothingTaken()
				})
			}
		}
	}
}

// TestKilledBeforeRetry: a reader that goes while a wrong span waits for the budget gets no panic.
func TestKilledBeforeRetry(t *testing.T) {
	killed := errors.New("killed")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var said bytes.Buffer
	f := setup(t, newSample(t), func(_ *fixture, o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&said, nil))
	})
	b := f.o.Budget
	f.blob.fault = func(_ context.Context, call int, p []byte, _ int64) error {
		clear(p)
		return nil
	}
	off, n := f.span(5)
	go func() {
		for f.blob.calls.Load() == 0 || !free(b.Fetch) {
			time.Sleep(time.Millisecond)
		}
		must(t, b.Fetch.Acquire(t.Context(), line.DefaultFetchBytes, line.NewUrgency(line.Demand))) // the retry waits
		time.Sleep(2 * retryDelay)
		cancel(killed)
	}()
	if err := f.read(ctx, off, n); !errors.Is(err, killed) {
		t.Error(err)
	}
	f.wait()
	b.Fetch.Release(line.DefaultFetchBytes)
	if s := said.String(); strings.Contains(s, "panic") {
		t.Error(s)
	}
	f.nothingTaken()
}
