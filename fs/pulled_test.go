package fs

import "time"

// What tests know of package pull's numbers.
const (
	maxAnnounced  = 8
	maxDownloads  = 3
	firstRequests = 10
	lookupTime    = 4500 * time.Millisecond
	lookupLeast   = 500 * time.Millisecond
	promiseFrom   = 5 * time.Millisecond
	earlyFar      = 50 * time.Millisecond
	earlyFor      = 15 * time.Second
)
