package line

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"time"
)

// Opener begins to read n bytes of a blob from off on. held says that they were asked for before:
// when they come says nothing of the way to the host.
type Opener = func(ctx context.Context, off, n int64) (body io.ReadCloser, held bool, err error)

// Open sends the request that was admitted, for n bytes from off on, and returns the bytes as they
// come. c is the claim that it was admitted for.
func (g *Grant) Open(ctx context.Context, c *Claim, off, n int64, open Opener) (io.ReadCloser, error) {
	h, prio := g.host, c.Priority()
	one := func(ctx context.Context, off, n int64) (io.ReadCloser, bool, error) {
		start := time.Now()
		body, held, err := open(ctx, off, n)
		if err == nil && !held {
			h.flow.answered(time.Since(start), g.filled)
		}
		return body, held, err
	}
	several := func(ctx context.Context, off, n int64) (io.ReadCloser, bool, error) {
		return h.stripe(ctx, off, n, prio, one)
	}
	return openLent(ctx, g, c, func() (io.ReadCloser, error) {
		if prio == Demand && n <= maxHedged {
			if r := h.race(ctx, off, off+n, several); r != nil {
				return r, nil
			}
		}
		body, _, err := several(ctx, off, n)
		return body, err
	})
}

// Guarded returns what f returns; a panic in f is an error. It is for goroutines that work on
// foreign bytes, or bring them.
func Guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			slog.Error("panic in a fetch", "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return f()
}
