package pull

import "time"

// What a pull fetches before a container can start, the trees of the image's index, comes in
// several ranges at the same time: a connection begins with firstWindow bytes in a round trip (RFC
// 6928) and brings twice as many in the next; and data that follow find several of them fast.
const (
	firstWindow = 14 << 10
	// firstMost is the most bytes of a range.
	firstMost = 1 << 20
	// firstRequests is how many requests a pull sends at the most before a container can start,
	// those for tokens and the referrers included, unless that is not enough for ranges of
	// firstMost bytes; firstLeast are for the ranges in any case.
	firstRequests, firstLeast = 10, 3
	// requestCost is what one request more takes of everybody's time. The reference registry reads
	// 4 MiB for each, however little it is asked for: 3 to 5 ms of a core, which others want as
	// well, here or there.
	requestCost = 4 * time.Millisecond
	// connections is how many are made when a pull begins, for the ranges and the first data after
	// them; farConnections where there is no answer after farAfter, because then they take long,
	// and each begins slowly.
	connections, farConnections = 12, 28
	farAfter                    = 35 * time.Millisecond
)

// rangePlan says in which ranges a blob is fetched: of so many bytes at the most, which come in so
// many round trips on a new connection.
type rangePlan struct{ most, rounds int64 }

// left is how many requests are left for the first ranges.
func (p *Pull) left() int64 { return max(firstRequests-p.Requests(), firstLeast) }

// quickest returns the plan by which a blob of this size comes soonest, with no more than so many
// requests if there is one.
func quickest(requests, size int64, roundTrip time.Duration) rangePlan {
	p := rangePlan{firstWindow, 1}
	best := p
	for p.most < firstMost {
		p = rangePlan{min(p.most+firstWindow<<p.rounds, firstMost), p.rounds + 1}
		if best.requests(size) > requests ||
			p.takes(size, roundTrip) < best.takes(size, roundTrip) {
			best = p
		}
	}
	return best
}

// takes is about how long a blob of this size takes.
func (p rangePlan) takes(size int64, roundTrip time.Duration) time.Duration {
	return time.Duration(p.rounds)*roundTrip + time.Duration(p.requests(size))*requestCost
}

// requests returns how many requests the plan makes for a blob of this size.
func (p rangePlan) requests(size int64) int64 { return (size + p.most - 1) / p.most }

// even returns the size of a blob's ranges if they are equally large.
func (p rangePlan) even(size int64) int64 {
	n := max(p.requests(size), 1)
	return max((size+n-1)/n, 1)
}
