package shaper

import (
	"time"

	"golang.org/x/sys/unix"
)

// TCP as Linux has it: an initial window of 10 segments (RFC 6928) that every
// acknowledged byte lets grow by one, up to the largest receive buffer
// (net.ipv4.tcp_rmem), and from the start again after an idle retransmission
// timeout (RFC 2861; 200 ms at least).
const (
	initialWindow = 10 * 1460
	largestWindow = 6 << 20
	idleReset     = 200 * time.Millisecond
)

// sender is the server's end of one connection: it decides when bytes leave.
type sender struct {
	s        *Shaper
	window   int
	inFlight int
	acks     []ack // in order of their arrival
	free     time.Time
}

// ack is the return of an acknowledgement for n bytes.
type ack struct {
	at time.Time
	n  int
}

func newSender(s *Shaper) *sender { return &sender{s: s, window: initialWindow} }

// send books as many of n bytes as the window has room for, waiting until that
// is at least one, and returns when these arrive at the client.
func (c *sender) send(n int) (arrival time.Time, booked int) {
	now := time.Now()
	c.s.mu.Lock()
	p := c.s.profile
	c.s.mu.Unlock()
	if p.RTT > 0 {
		if last := len(c.acks) - 1; last >= 0 && now.Sub(c.acks[last].at) > idleReset {
			c.acked(now)
			c.window = initialWindow
		}
		for c.acked(now); c.inFlight >= c.window; c.acked(now) {
			sleepUntil(c.acks[0].at)
			now = time.Now()
		}
		n = min(n, c.window-c.inFlight)
	}
	left := c.depart(now, p, n)
	if p.RTT > 0 {
		c.inFlight += n
		c.acks = append(c.acks, ack{left.Add(p.RTT), n})
	} else if left.Sub(now) > 20*time.Millisecond {
		sleepUntil(left) // without a window, a bounded queue before the link
	}
	return left.Add(p.RTT / 2), n
}

// depart books n bytes on the connection's own rate and on the shared link,
// and returns when the last of them has left.
func (c *sender) depart(now time.Time, p Profile, n int) time.Time {
	if p.ConnRate > 0 {
		c.free = later(c.free, now).Add(took(n, p.ConnRate))
		now = c.free
	}
	if p.Rate > 0 {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.s.free = later(c.s.free, now).Add(took(n, p.Rate))
		return c.s.free
	}
	return now
}

// acked takes in the acknowledgements that have arrived.
func (c *sender) acked(now time.Time) {
	i := 0
	for ; i < len(c.acks) && !c.acks[i].at.After(now); i++ {
		c.inFlight -= c.acks[i].n
		c.window = min(c.window+c.acks[i].n, largestWindow)
	}
	c.acks = c.acks[i:]
}

func took(n int, rate float64) time.Duration {
	return time.Duration(float64(n) / rate * float64(time.Second))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sleepUntil is late by some 60 µs; the runtime's own timers may be late by 1 ms.
func sleepUntil(t time.Time) {
	d := time.Until(t)
	if d > 3*time.Millisecond {
		time.Sleep(d - 2*time.Millisecond)
		d = time.Until(t)
	}
	for ; d > 20*time.Microsecond; d = time.Until(t) {
		ts := unix.NsecToTimespec(int64(d))
		if unix.Nanosleep(&ts, nil) == nil {
			return
		}
	}
}
