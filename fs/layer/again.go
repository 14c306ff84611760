package layer

import (
	"sync"
	"time"
)

const (
	// The kernel asks again, page by page, for what its readahead was refused, and a file system
	// over a file does so for each page of that. So that a reader has its error when the deadline
	// is over, and not after several of them, a read waits hasty for what a read was refused, at
	// the end of its deadline, less than againFor ago.
	hasty    = 500 * time.Millisecond
	againFor = 3 * time.Second
	// refusedMost is how many refused reads are remembered.
	refusedMost = 64
)

// refusals are the device's ranges whose readers have given up lately.
type refusals struct {
	mu  sync.Mutex
	all []refusal // the latest last
}

type refusal struct {
	off, end int64
	at       time.Time
}

// deadline returns how long a read of [off, end) waits that may wait for d.
func (r *refusals) deadline(off, end int64, d time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.all {
		if o.off < end && off < o.end && time.Since(o.at) < againFor {
			return min(d, hasty)
		}
	}
	return d
}

// add notes that a reader of [off, end) has given up.
func (r *refusals) add(off, end int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, refusal{off, end, time.Now()})
	r.all = r.all[max(len(r.all)-refusedMost, 0):]
}
