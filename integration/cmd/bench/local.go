package main

import (
	"context"
	"fmt"
	"time"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/integration/node"
)

const (
	// localPoll is how often micad is asked, and so how late the answer may be.
	localPoll = 50 * time.Millisecond
	// localPatience is how long nothing may arrive before layers that lack
	// something are believed to stay so (a configuration without fill).
	localPatience = 5 * time.Second
)

// localWatch waits in the background until all layers of the image are local.
type localWatch struct {
	cancel context.CancelFunc
	done   chan struct{}
	at     time.Time // zero: they do not become local; valid after done
	err    error
}

// awaitLocal begins to watch micad. Of other snapshotters there is nothing to wait for.
func (t *trial) awaitLocal(ctx context.Context) *localWatch {
	ctx, cancel := context.WithCancel(ctx)
	l := &localWatch{cancel: cancel, done: make(chan struct{})}
	if t.y.snapshotter != node.Snapshotter {
		close(l.done)
		return l
	}
	client := admin.NewClient(t.node.MicadAddress())
	go func() { // stop waits for it
		defer close(l.done)
		l.at, l.err = whenLocal(ctx, client, len(t.w.recipe.Steps)+1)
	}()
	return l
}

// wait returns when all layers were local, zero if they do not become so.
func (l *localWatch) wait() (time.Time, error) {
	<-l.done
	return l.at, l.err
}

// stop ends the watch; it may be called after wait.
func (l *localWatch) stop() {
	l.cancel()
	<-l.done
}

// whenLocal returns the time at which micad shows as many layers as an image
// has, all of them local; zero once nothing has arrived for localPatience.
func whenLocal(ctx context.Context, c *admin.Client, layers int) (time.Time, error) {
	var present int64
	changed := time.Now()
	for {
		var list []fs.Status
		if err := c.Get(ctx, admin.PathLayers, &list); err != nil {
			return time.Time{}, fmt.Errorf("layers of micad: %w", err)
		}
		now := time.Now()
		var local int
		var n, missing int64
		for _, l := range list {
			if l.Mode == fs.Local {
				local++
			}
			n += l.Present
			missing += l.Total - l.Present
		}
		if local == layers {
			return now, nil
		}
		if n != present || missing == 0 { // of what is all there, the digests are being checked
			present, changed = n, now
		} else if now.Sub(changed) > localPatience {
			return time.Time{}, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-time.After(localPoll):
		}
	}
}
