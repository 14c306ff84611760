package fs

// What a pull fetches before a container can start, the trees of the image's index, comes in several ranges at the
// same time: a connection begins with firstWindow bytes in a round trip (RFC 6928) and brings twice as many in the next; and data
// that follow find several of them fast.
const (
	firstWindow = 14 << 10
	// firstMost is the most bytes of a range.
	firstMost = 1 << 20
	// firstRequests is how many requests a pull sends at the most before a container can start, those for tokens and the referrers
	// included, unless that is not enough for ranges of firstMost bytes; firstLeast are for the ranges in any case.
	firstRequests, firstLeast = 10, 3
	// connections is how many are made when a pull begins, for the ranges and the first data after them.
	connections = 28
)

// rangePlan says in which ranges a blob is fetched: of so many bytes at the most, which come in so many round trips on a new
// connection.
type rangePlan struct{ most, rounds int64 }

// left is how many requests are left for the first ranges.
func (p *pull) left() int64 { return max(firstRequests-int64(p.image.Stats().Requests), firstLeast) }

// fewestRounds returns the plan with the fewest round trips for a blob of this size and no more than so many requests, if there is one.
func fewestRounds(requests, size int64) rangePlan {
	p := rangePlan{firstWindow, 1}
	for p.most < firstMost && p.requests(size) > requests {
		p = rangePlan{min(p.most+firstWindow<<p.rounds, firstMost), p.rounds + 1}
	}
	return p
}

// requests returns how many requests the plan makes for a blob of this size.
func (p rangePlan) requests(size int64) int64 { return (size + p.most - 1) / p.most }

// even returns the size of a blob's ranges if they are equally large.
func (p rangePlan) even(size int64) int64 {
	n := max(p.requests(size), 1)
	return max((size+n-1)/n, 1)
}
