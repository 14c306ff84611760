package registry

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DoubtedTimeout is what a registry is given that has let a look-up wait in vain, for
	// doubtedFor.
	DoubtedTimeout = 500 * time.Millisecond
	doubtedFor     = time.Hour
	// probeTimeout is how long it is asked meanwhile while nobody waits.
	probeTimeout = 30 * time.Second
)

var errNoProbe = errors.New("no answer came in time")

// Doubt remembers that somebody was waited for in vain. The zero value is trust.
type Doubt struct {
	probing atomic.Bool

	mu    sync.Mutex
	until time.Time
}

// Doubted tells whether somebody was waited for in vain within an hour.
func (d *Doubt) Doubted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Before(d.until)
}

// Trust notes that an answer came in time.
func (d *Doubt) Trust() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until = time.Time{}
}

// Doubt begins the hour, unless one has begun. Who is doubted is asked once more, by ask, in the
// background and with more time: credentials may take it, or the way. An answer brings back the
// trust.
func (d *Doubt) Doubt(ctx context.Context, c *Client, ask func(ctx context.Context) error) {
	d.mu.Lock()
	if now := time.Now(); !now.Before(d.until) {
		d.until = now.Add(doubtedFor)
	}
	d.mu.Unlock()
	if !d.probing.CompareAndSwap(false, true) {
		return
	}
	c.Go(ctx, func(ctx context.Context) {
		defer d.probing.Store(false)
		ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errNoProbe)
		defer cancel()
		if ask(ctx) == nil {
			d.Trust()
		}
	})
}

// Question is something that a pull asks a registry first, and can do without.
type Question uint8

// The questions.
const (
	// of a blob whose bytes are worth waiting for only if they come soon
	AboutBlob     Question = iota
	AboutManifest          // of a manifest, the same
	questions
)
