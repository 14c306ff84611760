package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// heapFloor is the heap's size below which it may grow by heapMost percent over what is in use until garbage is collected, bytes: a
	// pull then is not slowed by collections that have little to find. Above it grows by heapLeast.
	heapFloor           = 16 << 20
	heapLeast, heapMost = 50, 400
	// memoryLimit is what the Go runtime keeps to if it can, bytes: buffers come and go with pulls.
	memoryLimit = 96 << 20
)

// tuneMemory keeps the daemon small, and quick at its beginning: what it needs in the long run is little. The environment
// variables of the Go runtime win.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapMost)
		afterCollection(func() { debug.SetGCPercent(growth(heapInUse())) })
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
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

// afterCollection calls f after collections of garbage, until the process ends: after each, but for those that begin before f has returned.
func afterCollection(f func()) {
	// An object that nothing refers to is garbage at the next collection.
	type mark struct{ _ *byte }
	runtime.AddCleanup(&mark{new(byte)}, func(f func()) {
		f()
		afterCollection(f)
	}, f)
}
