package line

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// blob is a source of bytes. delay is how long each request waits for them, fault why one fails.
type blob struct {
	b     string
	held  bool
	delay func(call int64) time.Duration
	fault func(call int64) error
	calls atomic.Int64
}

func newBlob() *blob {
	var b bytes.Buffer
	for i := range 40_000 {
		b.WriteString(strconv.Itoa(i))
	}
	return &blob{b: b.String()}
}

func (b *blob) open(ctx context.Context, off, n int64) (io.ReadCloser, bool, error) {
	call := b.calls.Add(1)
	if b.delay != nil {
		select {
		case <-time.After(b.delay(call)):
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
	if b.fault != nil {
		if err := b.fault(call); err != nil {
			return nil, false, err
		}
	}
	return io.NopCloser(strings.NewReader(b.b[off : off+n])), b.held, nil
}

// TestHedge: a request that is slower than those before it is sent again.
func TestHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := int64(1 << 30)
		b := New(0, 0)
		h, src := b.Host(""), newBlob()
		src.delay = func(call int64) time.Duration {
			if call == slow {
				return time.Hour
			}
			return 10 * time.Millisecond
		}
		for range paceSamples {
			h.pace.observe(10*time.Millisecond, 11*time.Millisecond, 100_000)
		}
		readAll(t, h, 50_000, Demand, src.open)
		if n := src.calls.Load(); n > 1 {
			t.Errorf("%d requests", n)
		}
		slow = 2
		start := time.Now()
		if got := string(readAll(t, h, 50_000, Demand, src.open)); got != src.b[:50_000] {
			t.Error("wrong bytes")
		}
		if d := time.Since(start); d > 30*time.Millisecond {
			t.Errorf("waited %s", d)
		}
		if n := src.calls.Load(); n != 3 {
			t.Errorf("%d requests", n)
		}
		nothingTaken(t, b, h)
	})
}

// TestRaceErrors: both requests may fail, or the second alone.
func TestRaceErrors(t *testing.T) {
	fault := errors.New("broken off")
	for _, errs := range [][]error{{fault}, {fault, nil}, {nil, fault}} {
		synctest.Test(t, func(t *testing.T) {
			b := New(0, 0)
			h, src := b.Host(""), newBlob()
			for range paceSamples {
				h.pace.observe(time.Millisecond, time.Millisecond, 1000)
			}
			src.fault = func(call int64) error { return errs[min(int(call), len(errs))-1] }
			src.delay = func(call int64) time.Duration {
				if src.fault(call) != nil && call > 1 {
					return 0
				}
				return 5 * time.Millisecond
			}
			r := h.race(t.Context(), 100, 5100, src.open)
			p, err := io.ReadAll(r)
			all := len(errs) == 1
			if all && !errors.Is(err, fault) || !all && (err != nil || string(p) != src.b[100:5100]) {
				t.Errorf("%v: %d bytes, %v", errs, len(p), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if n := src.calls.Load(); n != 2 {
				t.Errorf("%d requests", n)
			}
			nothingTaken(t, b, h)
		})
	}
}
