package line

import (
	"sync"
	"time"
)

// Host is what is known of the way to one registry, and what fills have under way there.
type Host struct {
	budget *Budget
	flow   *flow
}

// hostsMost bounds the hosts that are remembered.
const hostsMost = 64

// hosts is a Budget's, by name. The zero value is ready.
type hosts struct {
	mu     sync.Mutex
	byName map[string]*Host
}

// Host returns the host of that name.
func (b *Budget) Host(name string) *Host {
	b.hosts.mu.Lock()
	defer b.hosts.mu.Unlock()
	if h := b.hosts.byName[name]; h != nil {
		return h
	}
	if len(b.hosts.byName) >= hostsMost || b.hosts.byName == nil {
		b.hosts.byName = map[string]*Host{} // what is under way keeps its own
	}
	h := &Host{budget: b, flow: newFlow(&b.readers)}
	b.hosts.byName[name] = h
	return h
}

// Answered tells how long a small request took that did not come by a Grant: about a round trip.
func (h *Host) Answered(d time.Duration) { h.flow.answered(d, false) }

// FillRequest is how large the requests of Near and Background should be, bytes.
func (h *Host) FillRequest() int64 { return h.flow.request() }
