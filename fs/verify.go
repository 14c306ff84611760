package fs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// Verified is what a check of a layer on disk has found.
type Verified struct {
	Layer    digest.Digest `json:"layer"`
	Ref      string        `json:"reference"`
	Spans    int           `json:"spans"` // that were there
	Bytes    int64         `json:"bytes"` // of these
	Wrong    int           `json:"wrong"` // spans that were not what their digest says, or could not be read
	Repaired int           `json:"repaired"`
	// Error says what is wrong and could not be put right.
	Error string `json:"error,omitempty"`
}

// healPatience is how long the repair of a layer waits for its registry.
const healPatience = 10 * time.Second

// Verify reads all that is on disk of a layer and compares it with its digests. What is wrong of a lazy layer is thrown
// away, and comes again when somebody reads it; of a complete one, which the kernel may be reading, it is fetched and put right
// where it lies. A layer whose index is wrong is set aside: the next start of micad fetches it anew.
func (t *Table) Verify(ctx context.Context, d digest.Digest) (Verified, error) {
	out := Verified{Layer: d}
	v, err := t.stored(Layer{Digest: d})
	if errors.Is(err, iofs.ErrNotExist) {
		return out, fmt.Errorf("verify layer %s: %w", d, err)
	}
	if err == nil {
		out.Ref = v.origins.latest()
		err = v.verify(ctx, &out, func(time.Duration) {})
	}
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out, nil
}

// verify is Verify of a layer that is open. After each span it calls rest with the time that it took.
func (v *live) verify(ctx context.Context, out *Verified, rest func(time.Duration)) error {
	// An opening of its own: the layer may be closed or removed meanwhile.
	s, err := v.t.store.Layer(v.digest)
	if err != nil {
		return err
	}
	defer s.Close()
	if s != v.store {
		return nil // it was removed, and came again
	}
	start := time.Now()
	if err := checkIndex(ctx, s); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return errors.Join(err, v.setAside())
	}
	rest(time.Since(start))
	wrong, err := v.wrongSpans(ctx, out, rest)
	if err != nil {
		return err
	}
	out.Wrong = len(wrong)
	v.t.cache.wrong.Add(int64(len(wrong)))
	if len(wrong) > 0 {
		v.t.log.ErrorContext(ctx, "bytes on disk are wrong: they are fetched again", "layer", v.digest, "spans", len(wrong))
		if err := v.heal(ctx, wrong, out); err != nil {
			return err
		}
		v.refill()
	}
	v.store.Checked()
	return nil
}

// wrongSpans returns the spans that are there and wrong.
func (v *live) wrongSpans(ctx context.Context, out *Verified, rest func(time.Duration)) ([]int, error) {
	spans, err := v.index.Spans()
	if err != nil {
		return nil, err
	}
	rec := v.store.Record()
	whole := rec.DiffID.Algorithm().Hash()
	var wrong []int
	var buf []byte
	for i := 0; i < len(spans); i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s, gone, start := &spans[i], v.store.Evictions(), time.Now()
		if !v.store.Present(i) {
			continue
		}
		if int64(cap(buf)) < s.Size {
			buf = make([]byte, s.Size)
		}
		p := buf[:s.Size]
		err := v.store.Peek(p, s.Device)
		if v.store.Evictions() != gone {
			i-- // it may have been a hole
			continue
		}
		out.Spans++
		out.Bytes += s.Size
		if err != nil || sha256.Sum256(p) != s.Digest {
			wrong = append(wrong, i)
		} else if v.store.Unchanged() {
			v.store.Believe(i, gone)
		}
		if rec.State == store.Verified {
			whole.Write(p)
		}
		rest(time.Since(start))
	}
	if rec.State == store.Verified && len(wrong) == 0 && out.Spans == len(spans) && digest.NewDigest(rec.DiffID.Algorithm(), whole) != rec.DiffID {
		return nil, errors.Join(fmt.Errorf("its bytes are what its index says, and not %s", rec.DiffID), v.setAside())
	}
	return wrong, nil
}

// heal puts wrong spans right, or throws them away.
func (v *live) heal(ctx context.Context, wrong []int, out *Verified) error {
	_, err := v.data.Evict(wrong)
	if err == nil {
		out.Repaired = len(wrong)
		return v.store.Restore() // its length, had the file been cut
	}
	if !errors.Is(err, store.ErrSealed) {
		return err
	}
	spans, err := v.index.Spans()
	if err != nil {
		return err
	}
	if spans.Whole() {
		return v.healWhole(ctx, wrong, out)
	}
	ctx, cancel := context.WithTimeout(ctx, healPatience)
	defer cancel()
	slices.Sort(wrong) // one that is longer than the file must not come before another
	for _, i := range wrong {
		p := make([]byte, spans[i].Size)
		if err := v.data.Fresh(ctx, p, spans[i].Device); err != nil {
			return fmt.Errorf("span %d stays wrong: %w", i, err)
		}
		if err := v.store.Repair(spans[i].Device, p); err != nil {
			return err
		}
		out.Repaired++
	}
	return nil
}

// checkIndex reads the whole index of a layer.
func checkIndex(ctx context.Context, s *store.Layer) error {
	f, err := os.Open(s.IndexPath())
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	x, err := index.Open(f, st.Size())
	if err != nil {
		return err
	}
	return x.Verify(ctx)
}

// setAside makes the next start find that the layer is damaged, which then fetches it anew. What has the index open keeps
// it.
func (v *live) setAside() error {
	if err := v.store.SetAside(); err != nil {
		return err
	}
	return errors.New("its index is damaged, and set aside: restart micad, which fetches the layer anew")
}

// mend puts right what is wrong on disk of a layer whose bytes together are not what they should be.
func (v *live) mend(ctx context.Context) {
	out := Verified{Layer: v.digest}
	if err := v.verify(ctx, &out, func(time.Duration) {}); err != nil && ctx.Err() == nil {
		v.t.log.ErrorContext(ctx, "layer on disk is wrong", "layer", v.digest, "err", err)
	}
}

const (
	// scrubShare is the part of the time in which a scrub works: it rests for the others.
	scrubShare = 10
	scrubTick  = time.Minute
	idleClass  = 3 << 13 // ioprio_set(2): IOPRIO_CLASS_IDLE
)

// scrub checks all layers as often as the configuration says, one after another and slowly, until ctx ends.
func (c *cache) scrub(ctx context.Context) {
	if c.o.Scrub == 0 {
		return
	}
	// The thread's priority on the disk is changed, so that it is not given back.
	runtime.LockOSThread()
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, 1, 0, idleClass) // IOPRIO_WHO_PROCESS, this thread; without it, it is slow all the same
	tick := time.NewTicker(min(scrubTick, max(c.o.Scrub/10, time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, v := range c.t.opened() {
			if time.Since(v.store.LastChecked()) < c.o.Scrub || ctx.Err() != nil {
				continue
			}
			out := Verified{Layer: v.digest}
			err := v.verify(ctx, &out, func(worked time.Duration) { sleep(ctx, (scrubShare-1)*worked) })
			if err != nil && ctx.Err() == nil {
				c.t.log.Error("layer on disk is wrong", "layer", v.digest, "err", err)
				v.store.Checked() // not again at once
			}
			c.t.log.Debug("layer checked", "layer", v.digest, "spans", out.Spans, "wrong", out.Wrong)
			c.mu.Lock()
			c.lastScrub = time.Now()
			c.mu.Unlock()
		}
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
