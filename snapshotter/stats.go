package snapshotter

import "sync/atomic"

// Stats counts what a Snapshotter did since it was made.
type Stats struct {
	Served    uint64 // layers that were mounted and committed
	Fallbacks uint64 // layers that became ordinary snapshots although their labels name them
	// layers that became ordinary snapshots because their labels do not name them
	Unannotated   uint64
	Restored      uint64 // layers mounted again after a restart
	RestoreErrors uint64 // attempts at that which did not work
	Removed       uint64 // layers given up
}

type counters struct {
	served, fallbacks, unannotated, restored, restoreErrors, removed atomic.Uint64
}

// Stats returns the counts. Each is exact; together they are not one moment's.
func (s *Snapshotter) Stats() Stats {
	c := &s.counters
	return Stats{
		Served:        c.served.Load(),
		Fallbacks:     c.fallbacks.Load(),
		Unannotated:   c.unannotated.Load(),
		Restored:      c.restored.Load(),
		RestoreErrors: c.restoreErrors.Load(),
		Removed:       c.removed.Load(),
	}
}
