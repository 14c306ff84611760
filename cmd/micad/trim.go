package main

import (
	"context"
	"runtime/debug"
	"time"
)

// trimEvery is how often it is looked whether the daemon has come to rest.
const trimEvery = 5 * time.Second

// trim gives the memory of a burst of work back to the system when it is over: the runtime alone
// would keep it for minutes.
func (d *daemon) trim(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var last uint64
	worked := true // at the start
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := d.client.Stats().BytesDown
		if now == last && worked {
			debug.FreeOSMemory()
		}
		last, worked = now, now != last
	}
}
