package supervisor

import "time"

const (
	// shortLife is what counts as dying at start rather than at work.
	shortLife = time.Second
	// freeDeaths is how many short lives in a row are followed by another at once. Readers wait
	// meanwhile, so a daemon that can work is never held up.
	freeDeaths = 3
	firstDelay = 50 * time.Millisecond
	maxDelay   = 3 * time.Second
)

// backoff keeps a daemon that dies at once, again and again, from taking the processor.
type backoff struct {
	short int  // short lives in a row
	eager bool // never waits
}

// next is how long to wait after a life; told: it ended because it had to.
func (b *backoff) next(life time.Duration, told bool) time.Duration {
	if b.eager || told || life >= shortLife {
		b.short = 0
		return 0
	}
	b.short++
	if b.short <= freeDeaths {
		return 0
	}
	return min(firstDelay<<min(b.short-freeDeaths-1, 10), maxDelay)
}
