package fs

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mica-snapshotter/mica/fs/layer"
)

// errForged is why a layer is not given to containers, although its own tree is known.
var errForged = errors.New("the mount in use shows a forged index's files: its containers have to go, or micad has to be restarted, before it is replaced")

// trust is the part of a live layer that knows how far its index is believed.
type trust struct {
	proving sync.Mutex  // held by whoever proves, until the mounts show what is proved
	proved  uint64      // with proving: 1 + Evictions when it was proved last; 0: it was not
	forged  atomic.Bool // the index that is open is not the one that is on disk now
	lies    atomic.Bool // the bytes that it has the digests of are not the layer's
}

// errLies is why a layer is not given to containers.
var errLies = errors.New("its index from the registry is forged: its bytes are not those of the diffID")

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

// believed returns when the index may be used for an image. That of a lazy layer is a repository's word, and good for images of
// that repository. Another repository has to have the same one; or else the layer is fetched to its end, which proves or replaces
// it: a layer is one on a node, whoever brought it, and must not show to all what one has written.
func (v *live) believed(ctx context.Context, l Layer, below []Below) error {
	if v.trust.lies.Load() {
		return errLies
	}
	repo := repositoryOf(l.Ref)
	vouchers := v.store.Record().Vouchers
	if len(vouchers) == 0 || slices.Contains(vouchers, repo) && !v.t.o.LocalIndexes {
		return nil
	}
	if !v.t.o.LocalIndexes {
		same, err := v.sameIndex(ctx, l, below)
		if same {
			return v.store.Vouch(repo)
		}
		v.t.log.InfoContext(ctx, "the layer is here, with an index that the image's repository has not got: it is fetched whole, to prove it",
			"ref", l.Ref, "layer", v.digest, "vouchers", vouchers, "err", err)
	}
	return v.fetchAndProve(ctx)
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

// fetchAndProve fetches what is missing of the layer, and returns when its index is proved or replaced.
func (v *live) fetchAndProve(ctx context.Context) error {
	for off, size := int64(0), v.data.Size(); ; {
		run, err := v.data.Next(off, size, layer.Ahead)
		if err != nil {
			return err
		}
		if run.Size == 0 {
			break
		}
		if err := v.data.Fetch(ctx, run.Off, run.Size, layer.Ahead); err != nil {
			return err
		}
		off = run.Off + run.Size
	}
	// The last spans are about to be in the store.
	for !v.store.AllPresent() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if v.saved(ctx) {
		v.complete(ctx)
	}
	if len(v.store.Record().Vouchers) > 0 {
		return errors.New("its index could not be proved")
	}
	return ctx.Err()
}
