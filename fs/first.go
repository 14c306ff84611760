package fs

import (
	"math"
	"time"
)

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
	// mountTime is about how long it takes to mount what the trees describe: named ranges may come so much later.
	mountTime = 25 * time.Millisecond
	// connections is how many are made when a pull begins, for the ranges and the first data after them.
	connections = 28
)

// rangePlan says in which ranges blobs are fetched: of so many bytes at the most, which come in so many round trips on a new
// connection.
type rangePlan struct{ most, rounds int64 }

// firstPlan says how a pull's first ranges are fetched: those of the trees, and those that the index names.
type firstPlan struct{ trees, named rangePlan }

// plan returns how what is left of firstRequests is best used for the trees and named ranges of these sizes, at a registry whose first
// answer, connection included, took so long.
func (p *pull) plan(took time.Duration, trees int64, named []int64) firstPlan {
	return planFirst(p.left(), int64(mountTime/max(took/2, 1)), trees, named)
}

// left is how many requests are left for the first ranges.
func (p *pull) left() int64 { return max(firstRequests-int64(p.image.Stats().Requests), firstLeast) }

// planFirst returns the plan that lets a container start soonest with no more than so many requests, if named ranges may come later than
// the trees by so many round trips.
func planFirst(requests, later, trees int64, named []int64) (best firstPlan) {
	soonest := int64(math.MaxInt64)
	for p := firstRounds(); ; p = p.next() {
		n := p.requests(trees)
		f := firstPlan{p, fewestRounds(requests-n, named)}
		fits := n+f.named.requests(named...) <= requests || p.most == firstMost
		if at := max(p.rounds+later, f.named.rounds); fits && at < soonest {
			best, soonest = f, at
		}
		if p.most == firstMost {
			return best
		}
	}
}

// fewestRounds returns the plan with the fewest round trips for blobs of these sizes.
func fewestRounds(requests int64, sizes []int64) rangePlan {
	p := firstRounds()
	for ; p.most < firstMost && p.requests(sizes...) > requests; p = p.next() {
	}
	return p
}

// firstRounds returns the plan of one round trip, and next that of one more.
func firstRounds() rangePlan { return rangePlan{firstWindow, 1} }

func (p rangePlan) next() rangePlan {
	return rangePlan{min(p.most+firstWindow<<p.rounds, firstMost), p.rounds + 1}
}

// requests returns how many requests the plan makes for blobs of these sizes.
func (p rangePlan) requests(sizes ...int64) (n int64) {
	for _, size := range sizes {
		n += (size + p.most - 1) / p.most
	}
	return n
}

// even returns the size of a blob's ranges if they are equally large.
func (p rangePlan) even(total int64) int64 {
	n := max(p.requests(total), 1)
	return max((total+n-1)/n, 1)
}
