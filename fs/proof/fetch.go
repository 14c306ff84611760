package proof

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

const (
	// passes bounds how often what is missing of a layer is fetched for its proof. It goes again
	// where the quota is too small for the layer, or the disk loses what is written.
	passes = 4
	// garbledSpans is how many spans may be wrong until it is taken for certain that the fetch of a
	// layer does not come to its end: a registry that sends wrong bytes is asked last from then on.
	garbledSpans = 16
)

// Prove fetches what is missing of the layer, and returns when its index is proved or replaced. The
// error is ErrDisproved where the bytes are not those of the diffID.
func (p *Proof) Prove(ctx context.Context) error {
	for range passes {
		if p.Standing() == Disproved {
			return ErrDisproved
		}
		if err := p.fetchAll(ctx); err != nil {
			return err
		}
		p.layer.Settle(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch p.Standing() {
		case Disproved:
			return ErrDisproved
		case Proved:
			return nil
		}
	}
	return fmt.Errorf("its index could not be proved in %d passes: cache.size may be too small, "+
		"or the disk loses data (micad's log has more)", passes)
}

// fetchAll fetches each span that is missing into the store, once. The error wraps index.ErrCorrupt where the
// bytes that come are not those that the index describes.
func (p *Proof) fetchAll(ctx context.Context) error {
	errGarbled := fmt.Errorf(
		"%w: it does not describe the bytes that the registry has", index.ErrCorrupt)
	ctx, cancel := context.WithCancelCause(ctx)
	data := p.layer.Data()
	before := data.Stats().Corrupt
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for data.Stats().Corrupt < before+garbledSpans {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		cancel(errGarbled)
	})
	for off, size := int64(0), data.Size(); ; {
		next, err := data.Next(off, size, line.Ahead)
		if err != nil || next.Size == 0 {
			return err
		}
		if err := data.Fetch(ctx, next.Off, next.Size, line.Ahead); err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, errGarbled) {
				return cause
			}
			return err
		}
		off = next.Off + next.Size
	}
}
