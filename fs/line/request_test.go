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

// blob is a source of bytes.
type blob struct {
	b     string
	calls atomic.Int64
}

func newBlob() *blob {
	var b bytes.Buffer
	for i := range 40_000 {
		b.WriteString(strconv.Itoa(i))
	}
	return &blob{b: b.String()}
}

func (b *blob) open(_ context.Context, off, n int64) (io.ReadCloser, error) {
	b.calls.Add(1)
	return io.NopCloser(strings.NewReader(b.b[off : off+n])), nil
}

// TestStriped: a request over several connections brings the same bytes, also across what two of
// them bring, and gives all back.
func TestStriped(t *testing.T) {
	b := New(0, 0)
	h, src := b.Host(""), newBlob()
	h.Answered(stripeRTT)
	mustRead(t, h, 20_000, 180_000, Replay, src)
	if n := src.calls.Load(); n != 2 {
		t.Errorf("%d requests", n)
	}
	nothingTaken(t, b, h)
}

// TestPieces: neighbours share a byte, or have a gap between them, and come over one connection or
// several.
func TestPieces(t *testing.T) {
	for _, rtt := range []time.Duration{0, stripeRTT} {
		b := New(0, 0)
		h, src := b.Host(""), newBlob()
		h.Answered(rtt)
		pieces := []Range{
			{10, 1}, {10, 1}, {10, 5000}, {5009, 60_000}, {65_010, 1},
			{75_000, 25_000}, {99_999, 80_000},
		}
		c := NewUrgency(Replay)
		g, err := b.Admit(t.Context(), h, 200_000, c)
		if err != nil {
			t.Fatal(err)
		}
		r := g.Request(t.Context(), c, pieces, src.open)
		for _, at := range pieces {
			p, err := r.Get(t.Context(), at.Off, at.Size)
			if err != nil || string(p) != src.b[at.Off:at.end()] {
				t.Errorf("%v: %d bytes, %v", at, len(p), err)
			}
		}
		r.Close()
		g.Close()
		nothingTaken(t, b, h)
		if n := src.calls.Load(); (n > 1) != (rtt > 0) {
			t.Errorf("%d requests", n)
		}
	}
}

// TestEarlyEnd: a body that ends before its last byte is an error, and what came before is there.
func TestEarlyEnd(t *testing.T) {
	b := New(0, 0)
	h, src := b.Host(""), newBlob()
	open := func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		return src.open(ctx, off, n-100)
	}
	r := h.Request(t.Context(), 0, 1000, open)
	if p, err := r.Get(t.Context(), 0, 900); err != nil || string(p) != src.b[:900] {
		t.Errorf("%d bytes, %v", len(p), err)
	}
	if _, err := r.Get(t.Context(), 850, 100); !errors.Is(err, io.ErrUnexpectedEOF) || !r.Failed() {
		t.Errorf("error is %v", err)
	}
	r.Close()
}

// halting is a body that stops after 1000 bytes until it may go on.
type halting struct {
	io.Reader
	read int
	goOn chan struct{}
}

func (h *halting) Read(p []byte) (int, error) {
	if h.read >= 1000 {
		<-h.goOn
	}
	n, err := h.Reader.Read(p[:min(len(p), 500)])
	h.read += n
	return n, err
}

func (h *halting) Close() error { return nil }

// TestLend: of a request that stops in the middle others have the memory, and the line; when it
// goes on it waits for them.
func TestLend(t *testing.T) {
	for _, prio := range []Priority{Demand, Background} {
		synctest.Test(t, func(t *testing.T) {
			b := New(100_000, 0)
			h, src := b.Host(""), newBlob()
			goOn := make(chan struct{})
			c := NewUrgency(prio)
			g, err := b.Admit(t.Context(), h, 60_000, c)
			if err != nil {
				t.Fatal(err)
			}
			open := func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
				body, err := src.open(ctx, off, n)
				return &halting{Reader: body, goOn: goOn}, err
			}
			r := g.Request(t.Context(), c, []Range{{0, 1000}, {1000, 59_000}}, open)
			if p, err := r.Get(t.Context(), 0, 1000); err != nil || string(p) != src.b[:1000] {
				t.Errorf("%d bytes, %v", len(p), err)
			}
			start := time.Now()
			other, err := b.Admit(t.Context(), h, 99_000, NewUrgency(Demand))
			synctest.Wait()
			if err != nil || time.Since(start) != idleFor || h.flow.used != 0 {
				t.Fatalf("after %v, %d bytes of the line: %v", time.Since(start), h.flow.used, err)
			}
			close(goOn)
			time.AfterFunc(time.Minute, other.Close)
			p, err := r.Get(t.Context(), 1000, 59_000)
			if err != nil || string(p) != src.b[1000:60_000] {
				t.Errorf("%d bytes, %v", len(p), err)
			}
			if took := time.Since(start); took != time.Minute+idleFor {
				t.Errorf("it went on after %v", took)
			}
			r.Close()
			g.Close()
			nothingTaken(t, b, h)
		})
	}
}
