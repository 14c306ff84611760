package line

import "time"

// A connection that is new, or that nothing came over for a while, brings little more than 14 KB in
// its first round trip and twice as much in each after it (RFC 6928, RFC 2861): a span takes five
// or six of them. So a request that somebody waits for, or soon will, goes over several connections
// at once, so that the last byte comes within three; and these are warm for the next.
const (
	// stripeSize is how many bytes go over one connection, where there are enough of them: what
	// comes in three round trips.
	stripeSize = 96 << 10
	// stripesMost is how many connections one request takes.
	stripesMost = 10
	// stripesTotal is how many all striped requests take together; a reader's takes stripesLeast in
	// any case.
	stripesTotal = 32
	stripesLeast = 4
	// stripeRTT is the least round trip time at which this is worth the requests.
	stripeRTT = 30 * time.Millisecond
)

// stripes returns over how many connections a request of n bytes goes.
func (h *Host) stripes(prio Priority, n int64) int64 {
	if prio >= Near || h.flow.roundTrip() < stripeRTT {
		return 1
	}
	k := min((n+stripeSize-1)/stripeSize, stripesMost)
	free := stripesTotal - h.budget.lines.Load()
	if prio == Demand {
		return min(k, max(free, stripesLeast))
	}
	return min(k, max(free/2, 1))
}
