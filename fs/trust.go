package fs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// errForged is why a layer is not given to containers, although its own tree is known.
var errForged = errors.New("the mount in use shows a forged index's files: its containers have to go, " +
	"or micad has to be restarted, before it is replaced")

// ErrDisproved is wrapped by the errors of Mount and Prove that mean: the layer came whole, and its
// bytes are not those of the diffID. It stays so until the layer is removed, or until a repository
// that has not vouched for it brings it.
var ErrDisproved = errors.New("its bytes are not those of the diffID that the image names for it")

// trust is the part of a live layer that knows how far its index is believed.
type trust struct {
	proving sync.Mutex  // held by whoever proves, until the mounts show what is proved
	proved  uint64      // with proving: 1 + Evictions when it was proved last; 0: it was not
	forged  atomic.Bool // the index that is open is not the one that is on disk now
}

// repositoryOf returns the part of an image reference before tag and digest: who vouches for what it finds there.
func repositoryOf(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	return ref
}

// shown says whether the mounts show what is proved, where the index that they were made with is known to be forged.
func (v *live) shown() error {
	if !v.trust.forged.Load() {
		return nil
	}
	v.trust.proving.Lock()
	defer v.trust.proving.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.points {
		if p.mode != Local {
			return errForged
		}
	}
	return nil
}

// believed returns when the index may be used for an image. That of a lazy layer is a repository's
// word, and good for images of that repository. Another repository has to have the same index. Or
// else the layer is fetched to its end, which proves or replaces the index: a layer is one on a
// node, and must not show to all what one repository has written.
func (v *live) believed(ctx context.Context, l Layer, below []Below) error {
	if ok, err := v.vouched(ctx, l, below); ok || err != nil {
		return err
	}
	v.t.log.InfoContext(ctx, "the layer is here, with an index that the image's repository has not got: "+
		"it is fetched whole, to prove it", "ref", l.Ref, "layer", v.digest)
	return v.fetchAndProve(ctx)
}

// vouched says whether the index is proved, or the word of the repository of an image: that repository
// is asked, unless it is known. The error is one that no proof can mend.
func (v *live) vouched(ctx context.Context, l Layer, below []Below) (bool, error) {
	rec, repo := v.store.Record(), repositoryOf(l.Ref)
	known := slices.Contains(rec.Vouchers, repo)
	switch {
	case rec.Disproved && known:
		return false, ErrDisproved
	case rec.Disproved:
		return false, nil
	case len(rec.Vouchers) == 0:
		return true, nil
	case v.t.o.LocalIndexes || l.Ref == "":
		return false, nil
	case known:
		return true, nil
	}
	same, err := v.sameIndex(ctx, l, below)
	if err != nil && ctx.Err() == nil {
		v.t.log.WarnContext(ctx, "whether a repository has the index of a layer is not known",
			"err", err, "ref", l.Ref, "layer", v.digest)
	}
	if same {
		return true, v.store.Vouch(repo)
	}
	return false, ctx.Err()
}

// sameIndex tells whether the repository of an image has the index that the layer has.
func (v *live) sameIndex(ctx context.Context, l Layer, below []Below) (bool, error) {
	p, err := v.t.begin(l, below)
	if err != nil {
		return false, err
	}
	defer v.t.leave(p)
	b, err := p.bundle()
	if err != nil {
		v.t.drop(p)
		return false, err
	}
	theirs, ok := b.find(v.digest)
	if !ok {
		return false, ctx.Err()
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(v.file, 0, theirs.IndexSize+1)); err != nil {
		return false, err
	}
	return [sha256.Size]byte(sum.Sum(nil)) == theirs.IndexDigest, nil
}

const (
	// proofPasses bounds how often what is missing of a layer is fetched for its proof. It goes again
	// where the quota is too small for the layer, or the disk loses what is written.
	proofPasses = 4
	// storeTime is how long the last spans of a pass may take from the reader to the store.
	storeTime = 10 * time.Second
)

// fetchAndProve fetches what is missing of the layer, and returns when its index is proved or
// replaced. The error is ErrDisproved where the bytes are not those of the diffID.
func (v *live) fetchAndProve(ctx context.Context) error {
	for range proofPasses {
		if v.store.Record().Disproved {
			return ErrDisproved
		}
		if err := v.fetchAll(ctx); err != nil {
			return err
		}
		if v.awaitAll(ctx) && v.saved(ctx) {
			v.complete(ctx)
		}
		switch rec := v.store.Record(); {
		case ctx.Err() != nil:
			return ctx.Err()
		case rec.Disproved:
			return ErrDisproved
		case len(rec.Vouchers) == 0:
			return nil
		}
	}
	return fmt.Errorf("its index could not be proved in %d passes: cache.size may be too small, "+
		"or the disk loses data (micad's log has more)", proofPasses)
}

// garbledSpans is how many spans may be wrong until it is taken for certain that the fetch of a layer
// does not come to its end: a registry that sends wrong bytes is asked last from then on.
const garbledSpans = 16

// fetchAll fetches each span that is missing, once. The error wraps index.ErrCorrupt where the bytes
// that come are not those that the index describes.
func (v *live) fetchAll(ctx context.Context) error {
	errGarbled := fmt.Errorf("%w: it does not describe the bytes that the registry has", index.ErrCorrupt)
	ctx, cancel := context.WithCancelCause(ctx)
	before := v.data.Stats().Corrupt
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for v.data.Stats().Corrupt < before+garbledSpans {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		cancel(errGarbled)
	})
	for off, size := int64(0), v.data.Size(); ; {
		run, err := v.data.Next(off, size, line.Ahead)
		if err != nil || run.Size == 0 {
			return err
		}
		if err := v.data.Fetch(ctx, run.Off, run.Size, line.Ahead); err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, errGarbled) {
				return cause
			}
			return err
		}
		off = run.Off + run.Size
	}
}

// awaitAll says whether all spans are in the store, when the last ones have had time to get there.
func (v *live) awaitAll(ctx context.Context) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(storeTime); !v.store.AllPresent() && time.Now().Before(end); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return v.store.AllPresent()
}

// Trust says whether a layer is proved, and whether it is forged. It asks nobody but the disk.
// Proved: it is known to be what its diffID names, and its mounts show that. Forged: it was once
// shown by an index that was not its own, and what other layers have inherited from it may be
// wrong.
func (t *Table) Trust(l Layer) (proved, forged bool) {
	s, err := t.store.Layer(l.Digest)
	if err != nil {
		return false, false
	}
	defer s.Close()
	rec := s.Record()
	if len(rec.Vouchers) > 0 || l.DiffID != "" && l.DiffID != rec.DiffID {
		return false, rec.Forged
	}
	v := t.openNow(l.Digest)
	return v == nil || v.shown() == nil, rec.Forged
}

// openNow returns a layer of the table if it is open, else nil.
func (t *Table) openNow(d digest.Digest) *live {
	t.mu.Lock()
	s := t.live[d]
	t.mu.Unlock()
	if s == nil || !s.ready.Load() {
		return nil
	}
	v, err := s.open()
	if err != nil {
		return nil
	}
	return v
}

// Vouched says whether the layer, which is here, may be shown to images of l.Ref's repository: it is
// proved, or that repository has the very index that shows it, which may take a request. It may not
// where the answer cannot be had. An error says that no proof will change that.
func (t *Table) Vouched(ctx context.Context, l Layer) (bool, error) {
	v, err := t.stored(Layer{Digest: l.Digest})
	if err != nil {
		return false, fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	if l.DiffID != "" && l.DiffID != v.index.Header().DiffID {
		return false, fmt.Errorf("%w: that is %s", ErrDisproved, v.index.Header().DiffID)
	}
	if ok, err := v.vouched(ctx, l, nil); !ok || err != nil {
		return false, err
	}
	return true, v.shown()
}

// Prove returns nil when a layer that is here is what its diffID names, and shown so from now on. It
// fetches what is missing of it. The error wraps ErrDisproved where it is not.
func (t *Table) Prove(ctx context.Context, d digest.Digest) error {
	v, err := t.stored(Layer{Digest: d})
	if err != nil {
		return fmt.Errorf("prove layer %s: %w", d, err)
	}
	if len(v.store.Record().Vouchers) > 0 {
		if err := v.fetchAndProve(ctx); err != nil {
			return fmt.Errorf("prove layer %s: %w", d, err)
		}
	}
	if err := v.shown(); err != nil {
		return fmt.Errorf("prove layer %s: %w", d, err)
	}
	return nil
}

// vouchBelow finds out in the background whether an image's repository has the indexes of the layers
// below one of its own, so that its containers need not wait for the answer.
func (t *Table) vouchBelow(l Layer, below []Below) {
	for i, b := range below {
		v := t.openNow(b.Digest)
		if v == nil {
			continue
		}
		rec := v.store.Record()
		if len(rec.Vouchers) == 0 || rec.Disproved || slices.Contains(rec.Vouchers, repositoryOf(l.Ref)) {
			continue
		}
		t.goes(func(ctx context.Context) {
			_, err := v.vouched(ctx, Layer{Ref: l.Ref, Manifest: l.Manifest, Digest: b.Digest}, below[i+1:])
			if err != nil && ctx.Err() == nil {
				t.log.DebugContext(ctx, "layer below is not vouched for", "err", err, "ref", l.Ref, "layer", b.Digest)
			}
		})
	}
}

// downloadInstead downloads a layer whole for an image, which proves it, and puts it into the place of v.
func (t *Table) downloadInstead(ctx context.Context, v *live, l Layer, below []Below) error {
	t.log.WarnContext(ctx,
		"a layer with an index that another repository has brought cannot be proved: it is downloaded anew",
		"ref", l.Ref, "layer", v.digest)
	p, err := t.begin(l, below)
	if err != nil {
		return err
	}
	defer t.leave(p)
	t.mu.Lock()
	if p.instead == nil {
		p.instead = map[digest.Digest]*live{}
	}
	p.instead[v.digest] = v
	t.mu.Unlock()
	done := make(chan error, 1)
	if !t.goes(func(context.Context) {
		err := errors.New("panic")
		defer func() { done <- err }()
		err = p.download(v.digest)
	}) {
		return errors.New("micad is stopping")
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// clearWay takes away what is to give way to a layer that the pull has downloaded. Its mounts go: what
// their readers have read was not the image's.
func (p *pull) clearWay(d digest.Digest) error {
	t := p.t
	t.mu.Lock()
	v := p.instead[d]
	delete(p.instead, d)
	t.mu.Unlock()
	if v == nil {
		return nil
	}
	t.damage.Lock()
	defer t.damage.Unlock()
	if t.openNow(d) != v {
		return nil // it has gone already
	}
	return t.discard(t.ctx, d)
}
