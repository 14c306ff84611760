package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

const (
	// heapFloor is a size of the heap, in bytes. Below heapFloor the heap may grow by heapMost percent
	// between two collections, because those of a pull would free little; above, by heapLeast.
	heapFloor           = 16 << 20
	heapLeast, heapMost = 50, 400
	// memoryLimit is what the Go runtime keeps to if it can, bytes, beside what scans hold: buffers
	// come and go with pulls.
	memoryLimit = 96 << 20
	// limitStep is by how much the limit changes at the least, bytes, because a change stops the
	// world.
	limitStep = 8 << 20
)

// tuneMemory keeps the daemon small, and quick at its beginning: what it needs in the long run is
// little. The environment variables of the Go runtime win.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapMost)
		afterCollection(func() { debug.SetGCPercent(growth(heapInUse())) })
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

// scanning raises the memory limit by what scans hold, which is no garbage: else it would be looked
// for without pause.
func scanning(held int64) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	limit := limitFor(held)
	if raised.Swap(limit) != limit {
		debug.SetMemoryLimit(limit)
	}
}

// raised is the limit that scanning has set last.
var raised atomic.Int64

// limitFor returns the memory limit while scans hold so many bytes.
func limitFor(held int64) int64 {
	return memoryLimit + (held+limitStep-1)/limitStep*limitStep
}

// growth returns by how many percent of what is in use the heap may grow until the next collection.
func growth(inUse int64) int {
	return int(min(max(heapLeast, (heapFloor-inUse)*100/max(inUse, 1)), heapMost))
}

// heapInUse returns how many bytes the last collection found to be in use.
func heapInUse() int64 {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	return int64(live[0].Value.Uint64())
}

// afterCollection calls f after collections of garbage, until the process ends: after each, but for
// those that begin before f has returned.
func afterCollection(f func()) {
	// An object that nothing refers to is garbage at the next collection.
	type mark struct{ _ *byte }
	runtime.AddCleanup(&mark{new(byte)}, func(f func()) {
		f()
		afterCollection(f)
	}, f)
}
