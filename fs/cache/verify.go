package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// Verified is what a check of a layer on disk has found.
type Verified struct {
	Layer digest.Digest `json:"layer"`
	Ref   string        `json:"reference"`
	Spans int           `json:"spans"` // that were there
	Bytes int64         `json:"bytes"` // of these
	// Wrong is how many spans were not what their digest says, or could not be read.
	Wrong    int `json:"wrong"`
	Repaired int `json:"repaired"`
	// Error says what is wrong and could not be put right.
	Error string `json:"error,omitempty"`
}

// healPatience is how long the repair of a layer waits for its registry.
const healPatience = 10 * time.Second

// pacer is told after each step of a check how long that took. It may wait.
type pacer func(worked time.Duration)

func atOnce(time.Duration) {}

// Verify reads all that is on disk of a layer and compares it with its digests. What is wrong of a
// lazy layer is thrown away, and comes again when somebody reads it; of a complete one, which the
// kernel may be reading, it is fetched and put right where it lies. A layer whose index is wrong is
// set aside: the next start of micad fetches it anew. The error says what could not be put right.
func (c *Cache) Verify(ctx context.Context, v Layer) (Verified, error) {
	return c.verify(ctx, v, atOnce)
}

func (c *Cache) verify(ctx context.Context, v Layer, rest pacer) (Verified, error) {
	rec := v.Store().Record()
	out := Verified{Layer: rec.Layer}
	if n := len(rec.Refs); n > 0 {
		out.Ref = rec.Refs[n-1]
	}
	// An opening of its own: the layer may be closed or removed meanwhile.
	s, err := c.store.Layer(rec.Layer)
	if err != nil {
		return out, err
	}
	defer s.Close()
	if s != v.Store() {
		return out, nil // it was removed, and came again
	}
	start := time.Now()
	if err := checkIndex(ctx, s); err != nil {
		if ctx.Err() != nil {
			return out, err
		}
		return out, errors.Join(err, setAside(s))
	}
	rest(time.Since(start))
	wrong, err := compare(ctx, v, &out, rest)
	if err != nil {
		return out, err
	}
	c.wrong.Add(int64(out.Wrong))
	if out.Wrong > 0 {
		c.log.ErrorContext(ctx, "bytes on disk are wrong: they are fetched again",
			"layer", rec.Layer, "spans", out.Wrong)
		if err := heal(ctx, v, wrong, &out); err != nil {
			return out, err
		}
		v.Refill()
	}
	s.Checked()
	return out, nil
}

// Compare compares what is on disk of a layer with its digests, and changes nothing but that a
// whole layer that is not what its diffID names is set aside.
func Compare(ctx context.Context, v Layer) (out Verified, err error) {
	_, err = compare(ctx, v, &out, atOnce)
	return out, err
}

// compare is Compare, and returns the spans that are there and wrong.
func compare(ctx context.Context, v Layer, out *Verified, rest pacer) ([]int, error) {
	spans, err := v.Spans()
	if err != nil {
		return nil, err
	}
	s, diffID := v.Store(), v.Store().Record().DiffID
	sealed, whole := s.Sealed(), diffID.Algorithm().Hash()
	hash := func([]byte, int64) {}
	if sealed {
		hash = func(p []byte, _ int64) { whole.Write(p) }
	}
	var wrong []int
	for i := 0; i < len(spans); i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		start := time.Now()
		err := s.Compare(i, hash)
		if errors.Is(err, store.ErrMissing) {
			switch {
			case !s.Present(i):
			case sealed: // something changed, and whole has bytes too many
				whole.Reset()
				i, wrong, out.Spans, out.Bytes = -1, nil, 0, 0
			default: // another span went
				i--
			}
			continue
		}
		out.Spans++
		out.Bytes += spans[i].Size
		if err != nil {
			wrong = append(wrong, i)
		}
		rest(time.Since(start))
	}
	out.Wrong = len(wrong)
	if sealed && len(wrong) == 0 && out.Spans == len(spans) &&
		digest.NewDigest(diffID.Algorithm(), whole) != diffID {
		why := fmt.Errorf("its bytes are what its index says, and not %s", diffID)
		return nil, errors.Join(why, setAside(s))
	}
	return wrong, nil
}

// heal puts wrong spans right, or throws them away.
func heal(ctx context.Context, v Layer, wrong []int, out *Verified) error {
	_, err := v.Data().Evict(wrong)
	if err == nil {
		out.Repaired = len(wrong)
		return v.Store().Restore() // its length, had the file been cut
	}
	if !errors.Is(err, store.ErrSealed) {
		return err
	}
	spans, err := v.Spans()
	if err != nil {
		return err
	}
	repair := func(i int, p []byte) error {
		err := v.Store().Repair(i, p)
		if err == nil {
			out.Repaired++
		}
		return err
	}
	if spans.FromStart() {
		return v.Data().Stream(ctx, wrong, repair) // one download for all of them
	}
	ctx, cancel := context.WithTimeout(ctx, healPatience)
	defer cancel()
	slices.Sort(wrong) // one that is longer than the file must not come before another
	for _, i := range wrong {
		p := make([]byte, spans[i].Size)
		if err := v.Data().Fresh(ctx, p, spans[i].Device); err != nil {
			return fmt.Errorf("span %d stays wrong: %w", i, err)
		}
		if err := repair(i, p); err != nil {
			return err
		}
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

// setAside makes the next start find that the layer is damaged, which then fetches it anew. What
// has the index open keeps it. The error, which it returns in any case, says what came of that.
func setAside(s *store.Layer) error {
	if err := s.SetAside(); err != nil {
		return err
	}
	return errors.New(
		"its index is damaged, and set aside: restart micad, which fetches the layer anew")
}
