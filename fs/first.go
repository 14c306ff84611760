package fs

// What a pull fetches before a container can start, the trees of the image's index and what the index names, comes in several ranges at the
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

// firstPlan says how a pull's first ranges are fetched: of so many bytes at the most, which come in so many round trips on a new
// connection.
type firstPlan struct{ most, rounds int64 }

// plan returns how what is left of firstRequests is best used for blobs, or ranges of them, of these sizes.
func (p *pull) plan(sizes ...int64) firstPlan {
	return planFirst(max(firstRequests-int64(p.image.Stats().Requests), firstLeast), sizes)
}

// planFirst returns the plan with the fewest round trips that makes no more than so many requests for these sizes.
func planFirst(requests int64, sizes []int64) firstPlan {
	f := firstPlan{firstWindow, 1}
	for ; f.most < firstMost; f.rounds++ {
		n := int64(0)
		for _, size := range sizes {
			n += (size + f.most - 1) / f.most
		}
		if n <= requests {
			return f
		}
		f.most += firstWindow << f.rounds
	}
	return firstPlan{firstMost, f.rounds}
}

// even returns the size of a blob's ranges if they are equally large.
func (f firstPlan) even(total int64) int64 {
	n := max((total+f.most-1)/f.most, 1)
	return max((total+n-1)/n, 1)
}
