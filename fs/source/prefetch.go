package source

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index"
)

const (
	// prefetchBytes is how many bytes are kept that nobody has read yet, of all pulls together.
	prefetchBytes = 16 << 20
	// unreadTime is how long they are kept at the least, if a reader has passed them, where others
	// want the room: they have come by another way.
	unreadTime = time.Second
	stepBytes  = 64 << 10 // after so many bytes readers are told
)

// Prefetch is ranges of blobs that are fetched before there is an index, in few large requests:
// what a start reads, of the copy beside a profile, or windows. A source takes from it what it has;
// who reads verifies that as all else. The zero value is ready.
//
// A piece is planned at first, then it is asked for, for which there has to be room, and arrives;
// whoever has read it to its end drops it.
type Prefetch struct {
	copies copies

	mu     sync.Mutex
	taken  int64 // bytes of the buffers of the pieces that were asked for
	pieces map[digest.Digest][]*piece
	count  int           // of all pieces so far
	spent  buffers       // to be used again as long as there are pieces
	room   chan struct{} // closed, and replaced, when pieces are dropped; nil: nobody waits for it
}

// piece is a range of a blob, on its way. Its fields down to buf are guarded by Prefetch.mu; buf
// changes from nil to its own bytes when the piece is asked for, and back when all have come and it
// is dropped, then with mu held as well.
type piece struct {
	desc      ocispec.Descriptor // the blob
	off, size int64
	feed      *feed
	number    int
	dropped   bool
	buf       []byte // nil: it is planned, or dropped

	mu   sync.Mutex
	have int           // bytes that are here
	read int           // bytes that were taken
	over bool          // no more will come
	more chan struct{} // closed, and replaced, when have or over changes
	came time.Time     // when all were here
}

// feed is the pieces of one pull, which are read in about their order. Guarded by Prefetch.mu.
type feed struct {
	reached int   // the latest that somebody wanted to read
	taken   int64 // as Prefetch.taken, of these
}

// add plans ranges, in pieces of at most size bytes, as far as they are not planned, or here.
func (e *Prefetch) add(
	f *feed, blob ocispec.Descriptor, ranges []index.Range, size int64,
) (pieces []*piece) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pieces == nil {
		e.pieces = map[digest.Digest][]*piece{}
	}
	for _, r := range ranges {
		for off, end := r.Off, r.Off+r.Size; off < end; {
			if here := e.findLocked(blob, off); here != nil {
				off = here.off + here.size
				continue
			}
			e.count++
			p := &piece{
				desc: blob, off: off, size: min(size, end-off),
				feed: f, number: e.count, more: make(chan struct{}),
			}
			e.pieces[blob.Digest] = append(e.pieces[blob.Digest], p)
			pieces = append(pieces, p)
			off += p.size
		}
	}
	return pieces
}

// begin makes room for a run's pieces as soon as there is some, and leaves out those at its ends
// that nobody wants any more. false: that is all of them, or ctx has ended.
func (e *Prefetch) begin(ctx context.Context, r *run) bool {
	unread := time.NewTicker(unreadTime)
	defer unread.Stop()
	for {
		room, ok := e.tryBegin(r)
		if ok || len(*r) == 0 {
			return ok
		}
		select {
		case <-room:
		case <-unread.C:
			e.dropUnread()
		case <-ctx.Done():
			return false
		}
	}
}

// tryBegin is begin without the wait, which is for room.
func (e *Prefetch) tryBegin(r *run) (room <-chan struct{}, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(*r) > 0 && (*r)[0].dropped {
		*r = (*r)[1:]
	}
	for len(*r) > 0 && (*r)[len(*r)-1].dropped {
		*r = (*r)[:len(*r)-1]
	}
	size := int64(0)
	for _, p := range *r {
		if !p.dropped {
			size += roundUp(p.size)
		}
	}
	if size == 0 {
		return nil, false
	}
	if e.taken > 0 && e.taken+size > prefetchBytes {
		if e.room == nil {
			e.room = make(chan struct{})
		}
		return e.room, false
	}
	for _, p := range *r {
		if !p.dropped {
			p.buf = e.spent.get(p.size, prefetchBytes-e.taken)
			e.taken += int64(cap(p.buf))
			p.feed.taken += int64(cap(p.buf))
		}
	}
	return nil, true
}

// dropUnread drops what readers have passed some time ago.
func (e *Prefetch) dropUnread() {
	e.mu.Lock()
	var old []*piece
	for _, list := range e.pieces {
		for _, p := range list {
			if p.buf != nil && p.number < p.feed.reached && p.cameBefore(time.Now().Add(-unreadTime)) {
				old = append(old, p)
			}
		}
	}
	e.mu.Unlock()
	e.drop(old...)
}

func (p *piece) cameBefore(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.came.IsZero() && p.came.Before(t)
}

// reach returns the piece that holds a byte of a blob, for somebody who is going to read from there
// on; nil: there is none that was asked for. Those of a profile that gives the blob another size do
// not count: they may never come.
func (e *Prefetch) reach(blob ocispec.Descriptor, off int64) *piece {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.findLocked(blob, off)
	if p == nil || p.buf == nil {
		return nil
	}
	p.feed.reached = max(p.feed.reached, p.number)
	return p
}

// planned says whether some of n bytes of a blob are planned, and about to be asked for: those of a
// pull that has nothing here may wait for room that another one takes.
func (e *Prefetch) planned(blob ocispec.Descriptor, off, n int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.pieces[blob.Digest], func(p *piece) bool {
		return p.buf == nil && p.feed.taken > 0 && p.desc.Size == blob.Size &&
			p.off < off+n && off < p.off+p.size
	})
}

// spare drops what is planned of n bytes of a blob: they are asked for now.
func (e *Prefetch) spare(blob ocispec.Descriptor, off, n int64) {
	e.mu.Lock()
	var needless []*piece
	for _, p := range e.pieces[blob.Digest] {
		if p.desc.Size == blob.Size && off <= p.off && p.off+p.size <= off+n {
			needless = append(needless, p)
		}
	}
	e.mu.Unlock()
	e.spareAll(needless)
}

// spareAll drops those pieces that are planned.
func (e *Prefetch) spareAll(pieces []*piece) {
	e.mu.Lock()
	planned := slices.DeleteFunc(slices.Clone(pieces), func(p *piece) bool { return p.buf != nil })
	e.mu.Unlock()
	e.drop(planned...) // one that was asked for in between is asked for twice
}

func (e *Prefetch) findLocked(blob ocispec.Descriptor, off int64) *piece {
	for _, p := range e.pieces[blob.Digest] {
		if p.desc.Size == blob.Size && p.off <= off && off < p.off+p.size {
			return p
		}
	}
	return nil
}

// drop forgets pieces. Who reads one asks for the rest, or goes on until all that was on its way
// has come.
func (e *Prefetch) drop(pieces ...*piece) {
	if len(pieces) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range pieces {
		if p.dropped {
			continue
		}
		p.dropped = true
		e.taken -= int64(cap(p.buf))
		p.feed.taken -= int64(cap(p.buf))
		if b := p.end(); b != nil {
			e.spent.put(b)
		}
		list := slices.DeleteFunc(e.pieces[p.desc.Digest], func(o *piece) bool { return o == p })
		if e.pieces[p.desc.Digest] = list; len(list) == 0 {
			delete(e.pieces, p.desc.Digest)
		}
	}
	if len(e.pieces) == 0 {
		e.spent = buffers{}
	}
	if e.room != nil {
		close(e.room)
		e.room = nil
	}
}

// end returns the buffer of a dropped piece that has come whole: nobody writes to it any more, or
// reads from it from now on. The caller holds Prefetch.mu.
func (p *piece) end() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.buf == nil || p.have < len(p.buf) {
		return nil
	}
	b := p.buf
	p.buf, p.have, p.over = nil, 0, true
	return b
}

// suspect drops what holds any of the n bytes from off on, which were wrong.
func (e *Prefetch) suspect(blob digest.Digest, off, n int64) {
	e.mu.Lock()
	list := slices.Clone(e.pieces[blob])
	e.mu.Unlock()
	for _, p := range list {
		if p.off < off+n && off < p.off+p.size {
			e.drop(p)
		}
	}
}

// fill reads the piece from body, past which it goes if nobody wants it.
func (p *piece) fill(body io.Reader) error {
	if p.buf == nil {
		_, err := io.CopyN(io.Discard, body, p.size)
		return err
	}
	for b := p.buf; len(b) > 0; {
		n, err := io.ReadFull(body, b[:min(stepBytes, len(b))])
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
	if p.have == len(p.buf) {
		p.came = time.Now()
	}
	close(p.more)
	p.more = make(chan struct{})
}

// take waits for bytes from off on and copies them. 0 says that none will come; an error is of ctx.
// last says that all of the piece have been taken, by somebody.
func (p *piece) take(ctx context.Context, b []byte, off int64) (n int, last bool, err error) {
	for {
		p.mu.Lock()
		if n = copy(b, p.buf[min(off-p.off, int64(p.have)):p.have]); n > 0 || p.over {
			p.read += n
			last = int64(p.read) >= p.size
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

// heldBody is a range of a blob of which the beginning, at least, was asked for before.
type heldBody struct {
	s        *Source
	ctx      context.Context
	off, end int64         // in the blob
	rest     io.ReadCloser // what was not; nil: not reached
}

// Read implements io.Reader.
func (b *heldBody) Read(p []byte) (int, error) {
	if b.off == b.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.end-b.off)]
	prefetch := b.s.prefetch
	for b.rest == nil && len(p) > 0 {
		piece := prefetch.reach(b.s.desc, b.off)
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
			prefetch.drop(piece)
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
func (b *heldBody) Close() error {
	if b.rest != nil {
		return b.rest.Close()
	}
	return nil
}
