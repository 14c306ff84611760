package fetch

import "time"

// Pauses after a failed request of a layer: they double from the first to the last.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// backoff is how long a layer is left alone.
type backoff struct {
	until time.Time
	pause time.Duration
}

func (b *backoff) active(now time.Time) bool { return now.Before(b.until) }

// failed begins the next pause. Requests that fail at about the same time cost one.
func (b *backoff) failed(now time.Time) {
	if b.active(now) {
		return
	}
	b.pause = min(max(2*b.pause, firstPause), lastPause)
	b.until = now.Add(b.pause)
}

// worked ends the row of failures. A pause that has begun goes on: requests that were sent before
// the failure say nothing.
func (b *backoff) worked(now time.Time) {
	if !b.active(now) {
		b.pause = 0
	}
}
