// Package proof answers one question: may a layer be shown to the containers of an image?
//
// # What is known of a layer
//
// The index of a layer that came whole was made on this node. Any other is somebody's word: of the
// repositories that have it, which are the layer's vouchers. A layer is one on a node, and must not
// show to all what one repository has written. So each layer has a standing, which is on disk with
// it and survives a restart:
//
//	Endorsed ── Check: the bytes are the diffID's, the tree is their tar's ──▶ Proved
//	Endorsed ── Check: the bytes are the diffID's, the tree is not their tar's: replaced ──▶ Proved
//	Endorsed ── Check: each span is what the index says, and not the diffID's ──▶ Disproved
//	Endorsed ── Vouched: another repository has the same index ──▶ Endorsed, by that one too
//
// A layer that is Proved may be shown to all images that name its diffID; one that is Endorsed to
// those of its vouchers, and to others when it has been proved for them (Prove fetches it to its
// end); one that is Disproved to none, until it is removed or another repository brings it anew.
// Whoever was given a mount of a forged tree keeps it: Shown says whether the mounts of the layer
// show by now what is proved.
//
// # Concurrency
//
// All methods may run in parallel. One proof of a layer runs at a time: see Settling. No lock but
// that one is held over disk or network.
package proof

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// ErrDisproved is wrapped by errors that mean: the layer came whole, and its bytes are not those of
// the diffID. It stays so until the layer is removed, or until a repository that has not vouched
// for it brings it.
var ErrDisproved = errors.New(
	"its bytes are not those of the diffID that the image names for it")

// ErrForged is why a layer is not given to containers, although its own tree is known.
var ErrForged = errors.New("the mount in use shows a forged index's files: its containers have " +
	"to go, or micad has to be restarted, before it is replaced")

// Standing is how far the index of a layer on disk is believed.
type Standing int

// The standings of a layer.
const (
	Proved    Standing = iota // the index was made, or proved, on this node
	Endorsed                  // it is the word of its vouchers
	Disproved                 // the vouchers' word is false
)

// Of returns the standing of a layer with this record.
func Of(rec *store.Record) Standing {
	switch {
	case rec.Disproved:
		return Disproved
	case len(rec.Vouchers) > 0:
		return Endorsed
	}
	return Proved
}

// Vouches says whether a repository has vouched for the index of a layer.
func Vouches(rec *store.Record, repository string) bool {
	return slices.Contains(rec.Vouchers, repository)
}

// Is says whether a layer is proved to be what a diffID names; "": to be whatever it is.
func Is(rec *store.Record, diffID digest.Digest) bool {
	return Of(rec) == Proved && (diffID == "" || diffID == rec.DiffID)
}

// RepositoryOf returns the part of an image reference before tag and digest: who vouches for what
// is found there.
func RepositoryOf(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	return ref
}

// Layer is what a proof needs of a layer that is open. Its methods may run in parallel.
type Layer interface {
	Store() *store.Layer    // its files
	Data() *layer.Layer     // its bytes
	Index() *index.Layer    // the index that it is shown by
	IndexFile() io.ReaderAt // the file of Index
	// Settle makes a layer durable, and has it proved, by Check, and shown, if it is whole. It is
	// for Settling.
	Settle(ctx context.Context)
	// Local says whether all mounts of the layer show what is on disk now.
	Local() bool
	// Tree returns the tree of the layer's tar, and has to be told when that is not needed any
	// more.
	Tree(ctx context.Context, tar io.Reader) (root *erofs.Node, done func(), err error)
	// Compare compares all that is on disk with its digests.
	Compare(ctx context.Context) (cache.Verified, error)
	// ReplaceIndex puts an index with another tree in the place of the one on disk.
	ReplaceIndex(root *erofs.Node) error
}

// Image is one that a layer is to be shown to.
type Image struct {
	Ref string // "": not known
	// Lookup returns what the image's repository has for the layer; false: nothing.
	Lookup func() (bundle.Record, bool, error)
}

// Proof is what is known of one layer that is open. New makes it.
type Proof struct {
	layer Layer
	local bool
	log   *slog.Logger

	settling sync.Mutex  // see Settling
	proved   bool        // with settling: it was, and is as long as the store has all of it
	forged   atomic.Bool // the index that is open is not the one that is on disk now
}

// New returns the proof of a layer. local: no repository's word counts.
func New(l Layer, local bool, log *slog.Logger) *Proof {
	return &Proof{layer: l, local: local, log: log.With("layer", l.Store().Digest())}
}

// Standing returns how far the layer's index is believed.
func (p *Proof) Standing() Standing {
	rec := p.layer.Store().Record()
	return Of(&rec)
}

// Settling keeps others from settling the layer, and Shown from answering, until done is called:
// for who checks the layer, and then has its mounts show what was found.
func (p *Proof) Settling() (done func()) {
	p.settling.Lock()
	return p.settling.Unlock
}

// Forged says whether the index that is open is not the one that is on disk now, because it was
// forged.
func (p *Proof) Forged() bool { return p.forged.Load() }

// Shown returns nil if the mounts show what is proved, where the index that they were made with is
// known to be forged.
func (p *Proof) Shown() error {
	if !p.Forged() {
		return nil
	}
	defer p.Settling()()
	if !p.layer.Local() {
		return ErrForged
	}
	return nil
}

// Believed returns when the index may be used for an image. Where the image's repository has
// another index, or none, the layer is fetched to its end, which proves or replaces the index.
func (p *Proof) Believed(ctx context.Context, image Image) error {
	if ok, err := p.Vouched(ctx, image); ok || err != nil {
		return err
	}
	p.log.InfoContext(ctx, "the layer is here, with an index that the image's repository has not "+
		"got: it is fetched whole, to prove it", "ref", image.Ref)
	return p.Prove(ctx)
}

// Vouched says whether the index is proved, or the word of the repository of an image: that
// repository is asked, unless it is known. The error is one that no proof can mend.
func (p *Proof) Vouched(ctx context.Context, image Image) (bool, error) {
	if ok, known, err := p.known(image); known {
		return ok, err
	}
	same, err := p.same(ctx, image)
	if err != nil && ctx.Err() == nil {
		p.log.WarnContext(ctx, "whether a repository has the index of a layer is not known",
			"err", err, "ref", image.Ref)
	}
	if same {
		return true, p.layer.Store().Vouch(RepositoryOf(image.Ref))
	}
	return false, ctx.Err()
}

// Asks says whether Vouched would ask the repository of an image.
func (p *Proof) Asks(image Image) bool {
	_, known, _ := p.known(image)
	return !known
}

// known is what Vouched returns without asking anybody, if that is known.
func (p *Proof) known(image Image) (ok, known bool, err error) {
	rec := p.layer.Store().Record()
	vouches := Vouches(&rec, RepositoryOf(image.Ref))
	switch standing := Of(&rec); {
	case standing == Disproved && vouches:
		return false, true, ErrDisproved
	case standing == Disproved:
		return false, true, nil
	case standing == Proved:
		return true, true, nil
	case p.local || image.Ref == "":
		return false, true, nil
	}
	return vouches, vouches, nil
}

// same tells whether the repository of an image has the index that the layer has.
func (p *Proof) same(ctx context.Context, image Image) (bool, error) {
	theirs, ok, err := image.Lookup()
	if !ok || err != nil {
		return false, errors.Join(err, ctx.Err())
	}
	sum := sha256.New()
	file := io.NewSectionReader(p.layer.IndexFile(), 0, theirs.IndexSize+1)
	if _, err := io.Copy(sum, file); err != nil {
		return false, err
	}
	return [sha256.Size]byte(sum.Sum(nil)) == theirs.IndexDigest, nil
}
