package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs"
)

// mountPatience bounds the wait for mounts after a pull. A container waits for them by itself.
const mountPatience = time.Minute

// awaitMounts waits until what micad serves of the image is mounted, as a registry that is far away
// answers after containerd has been promised the layers.
func (w *pullWatch) awaitMounts(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, mountPatience)
	defer cancel()
	for {
		var all []fs.Status
		err := w.micad.Get(waiting, admin.PathLayers, &all)
		if err == nil && w.mountedAre(all) {
			w.poll(ctx)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pull %s: interrupted before its layers were mounted; containerd "+
				"has the image", w.ref)
		case <-waiting.Done():
			w.sayf("not all layers are mounted: a container that starts waits for them")
			return nil
		case <-time.After(show.Redraw):
		}
	}
}

// mountedAre takes note of the layers that micad has, and says whether all that it serves of the
// image are mounted.
func (w *pullWatch) mountedAre(all []fs.Status) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = map[digest.Digest]fs.Status{}
	for _, s := range all {
		if s.Mode != "" {
			w.status[s.Layer] = s
		}
	}
	w.mounted = 0
	done := true
	for _, l := range w.layers {
		_, ok := w.status[l.Digest]
		if ok || l.stage != served {
			w.mounted++
		} else {
			done = false
		}
	}
	return done
}

// layerKind is how a layer came to the node.
type layerKind string

const (
	lazyLayer     layerKind = "lazy"
	wholeLayer    layerKind = "downloaded whole" // by micad, before a container can start
	ordinaryLayer layerKind = "unpacked by containerd"
)

// askWhole asks micad which layers of this pull it has downloaded whole, and why.
func (w *pullWatch) askWhole(ctx context.Context) {
	var all []admin.Fallback
	if err := w.micad.Get(ctx, admin.PathFallbacks, &all); err != nil {
		w.sayf("which layers were not lazy is not known: %v", err)
		return
	}
	for _, f := range all { // the latest first
		if f.Ref == w.ref && f.Whole != nil && f.Time.After(w.start) {
			w.whole = &f
			return
		}
	}
}

// result says how it went, in a line; before it, why micad downloaded layers whole. own is what
// this program has received.
func (w *pullWatch) result(own int64) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.whole != nil {
		w.sayf("not lazy: %s", w.whole.Text())
	}
	count := map[layerKind]int{}
	there := 0
	for _, l := range w.layers {
		count[w.kindOfLocked(l)]++
		if l.stage == wasThere {
			there++
		}
	}
	text := fmt.Sprintf("ready in %s, %s of %s downloaded, %d of %d layers lazy",
		tookText(time.Since(w.start)), show.Bytes(own+w.received), show.Bytes(w.sizeLocked()),
		count[lazyLayer], len(w.layers))
	for _, kind := range []layerKind{wholeLayer, ordinaryLayer} {
		if n := count[kind]; n > 0 {
			text += fmt.Sprintf(", %d %s", n, kind)
		}
	}
	if there > 0 {
		text += fmt.Sprintf(" (%d were here before)", there)
	}
	return text
}

// kindOfLocked says what became of a layer. One that was here before is lazy: nobody waited for it.
func (w *pullWatch) kindOfLocked(l *pullLayer) layerKind {
	_, mounted := w.status[l.Digest]
	switch {
	case l.stage == ordinary || l.stage == unpacked || l.stage == wasThere && !mounted:
		return ordinaryLayer
	case w.whole != nil && slices.Contains(w.whole.Whole, l.Digest):
		return wholeLayer
	}
	return lazyLayer
}

// tookText writes a duration for people.
func tookText(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
