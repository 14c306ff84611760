package registry

import (
	"cmp"
	"slices"
	"time"

	"github.com/mica-snapshotter/mica/integration/shaper"
)

// Timed is a request with the client's times: what the proxy and the shaper
// know of it together.
type Timed struct {
	Request
	Sent  time.Time // the client sent it
	First time.Time // the answer's first byte arrived
	Last  time.Time // its last byte arrived
}

// Timeline returns the requests that were sent since the last ResetTraffic and
// have been answered, by their time. It is right for connections that were made
// since then: of older ones, a request that was under way is not known.
func (r *Registry) Timeline() []Timed {
	exchanges := map[string][]shaper.Exchange{}
	for _, e := range r.shaper.Exchanges() {
		exchanges[e.Conn] = append(exchanges[e.Conn], e)
	}
	var list []Timed
	for _, req := range r.Traffic().Requests {
		// both are in order on one connection: HTTP/1.1 answers one request after the other
		if of := exchanges[req.conn]; len(of) > 0 {
			list = append(list, Timed{Request: req, Sent: of[0].Sent, First: of[0].First,
				Last: of[0].Last})
			exchanges[req.conn] = of[1:]
		}
	}
	slices.SortStableFunc(list, func(a, b Timed) int {
		return cmp.Compare(a.Sent.UnixNano(), b.Sent.UnixNano())
	})
	return list
}

// Sent is the number of requests sent since the last ResetTraffic, those that
// are under way included.
func (r *Registry) Sent() int { return len(r.shaper.Exchanges()) }
