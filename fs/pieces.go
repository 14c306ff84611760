package fs

import (
	"context"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/profile/published"
)

const (
	// earlyBytes is how many bytes are kept for layers whose index is still on its way, of all pulls together.
	earlyBytes = 2 * published.MaxEarly
	earlyStep  = 64 << 10 // after so many bytes readers are told
)

// early is ranges of blobs that are fetched before there is an index: what a profile says that a start reads first. They come from
// the blobs, or by few requests from a copy that lies beside the profile. A source takes from it what it has; who reads verifies that as
// all else.
type early struct {
	mu     sync.Mutex
	taken  int64
	pieces map[digest.Digest][]*piece
}

// piece is a range of a blob, on its way.
type piece struct {
	desc ocispec.Descriptor // the blob
	off  int64
	buf  []byte

	mu   sync.Mutex
	have int           // bytes that are here
	read int           // bytes that were taken
	over bool          // no more will come
	more chan struct{} // closed, and replaced, when have or over changes
}

// add makes room for ranges, in pieces of at most size bytes, as far as there is some and they are not here.
func (e *early) add(ranges []published.BlobRange, size int64) (pieces []*piece) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pieces == nil {
		e.pieces = map[digest.Digest][]*piece{}
	}
	for _, r := range ranges {
		blob := ocispec.Descriptor{Digest: r.Blob, Size: r.BlobSize}
		for off, end := r.Off, r.Off+r.Size; off < end; {
			if here := e.findLocked(blob, off); here != nil {
				off = here.off + int64(len(here.buf))
				continue
			}
			n := min(size, end-off)
			if e.taken+n > earlyBytes {
				return pieces
			}
			p := &piece{desc: blob, off: off, buf: make([]byte, n), more: make(chan struct{})}
			e.taken += n
			e.pieces[r.Blob] = append(e.pieces[r.Blob], p)
			pieces = append(pieces, p)
			off += n
		}
	}
	return pieces
}

// find returns the piece that holds a byte of a blob; nil: there is none. Those of a profile that gives the blob another size do
// not count: they may never come.
func (e *early) find(blob ocispec.Descriptor, off int64) *piece {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.findLocked(blob, off)
}

func (e *early) findLocked(blob ocispec.Descriptor, off int64) *piece {
	for _, p := range e.pieces[blob.Digest] {
		if p.desc.Size == blob.Size && p.off <= off && off < p.off+int64(len(p.buf)) {
			return p
		}
	}
	return nil
}

// drop forgets pieces. Who reads one goes on.
func (e *early) drop(pieces ...*piece) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range pieces {
		list := e.pieces[p.desc.Digest]
		i := slices.Index(list, p)
		if i < 0 {
			continue
		}
		e.taken -= int64(len(p.buf))
		if list = slices.Delete(list, i, i+1); len(list) == 0 {
			delete(e.pieces, p.desc.Digest)
		} else {
			e.pieces[p.desc.Digest] = list
		}
	}
}

// suspect drops what holds any of the n bytes from off on, which were wrong.
func (e *early) suspect(blob digest.Digest, off, n int64) {
	e.mu.Lock()
	list := slices.Clone(e.pieces[blob])
	e.mu.Unlock()
	for _, p := range list {
		if p.off < off+n && off < p.off+int64(len(p.buf)) {
			e.drop(p)
		}
	}
}

// fill reads the piece from body.
func (p *piece) fill(body io.Reader) error {
	for b := p.buf; len(b) > 0; {
		n, err := io.ReadFull(body, b[:min(earlyStep, len(b))])
		if err != nil {
			return err
		}
		b = b[n:]
		p.advance(n)
	}
	return nil
}

// advance notes that n more bytes are here; 0: no more will come.
func (p *piece) advance(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have += n
	p.over = n == 0
	close(p.more)
	p.more = make(chan struct{})
}

// take waits for bytes from off on and copies them. 0 says that none will come; an error is of ctx. last says that all
// of the piece have been taken, by somebody.
func (p *piece) take(ctx context.Context, b []byte, off int64) (n int, last bool, err error) {
	for {
		p.mu.Lock()
		if n = copy(b, p.buf[min(off-p.off, int64(p.have)):p.have]); n > 0 || p.over {
			p.read += n
			last = p.read >= len(p.buf)
			p.mu.Unlock()
			return n, last, nil
		}
		more := p.more
		p.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return 0, false, context.Cause(ctx)
		}
	}
}

// earlyBody is a range of a blob of which the beginning, at least, was asked for before.
type earlyBody struct {
	s        *source
	ctx      context.Context
	off, end int64         // in the blob
	rest     io.ReadCloser // what was not; nil: not reached
}

var _ layer.Held = (*earlyBody)(nil)

// Held implements layer.Held.
func (b *earlyBody) Held() {}

// Read implements io.Reader.
func (b *earlyBody) Read(p []byte) (int, error) {
	if b.off == b.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.end-b.off)]
	early := b.s.origins.early
	for b.rest == nil && len(p) > 0 {
		piece := early.find(b.s.desc, b.off)
		if piece == nil {
			rest, err := b.s.ask(b.ctx, b.off, b.end-b.off)
			if err != nil {
				return 0, err
			}
			b.rest = rest
			break
		}
		n, last, err := piece.take(b.ctx, p, b.off)
		if last {
			early.drop(piece)
		}
		if n > 0 || err != nil {
			b.off += int64(n)
			return n, err
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.rest.Read(p)
	b.off += int64(n)
	return n, err
}

// Close implements io.Closer.
func (b *earlyBody) Close() error {
	if b.rest != nil {
		return b.rest.Close()
	}
	return nil
}
