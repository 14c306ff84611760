package source

import (
	"context"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/remote"
)

const (
	// prefetchBytes is how many bytes are kept, of all pulls together.
	prefetchBytes = 16 << 20
	stepBytes     = 64 << 10 // after so many bytes readers are told
)

// Prefetch is beginnings of blobs that are fetched before there is an index: windows. A source
// takes from it what it has; who reads verifies that as all else. The zero value is ready.
type Prefetch struct {
	mu       sync.Mutex
	portions map[digest.Digest][]*portion
	bytes    int64 // of all portions
}

// portion is a range of a blob, on its way.
type portion struct {
	off int64
	buf []byte

	mu   sync.Mutex
	have int           // bytes that are here
	over bool          // no more will come
	more chan struct{} // closed, and replaced, when have or over changes
}

// Early is the beginning of a blob that is to be fetched.
type Early struct {
	all      *Prefetch
	blob     ocispec.Descriptor
	portions []*portion
}

// Early makes room for the first n bytes of a blob, in portions of at most size bytes; none where
// there is no room, or they are here. Pair it with Fetch.
func (e *Prefetch) Early(blob ocispec.Descriptor, n, size int64) *Early {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := &Early{all: e, blob: blob}
	if e.bytes+n > prefetchBytes || len(e.portions[blob.Digest]) > 0 {
		return all
	}
	for off := int64(0); off < n; off += size {
		all.portions = append(all.portions, &portion{
			off: off, buf: make([]byte, min(size, n-off)), more: make(chan struct{}),
		})
	}
	if e.portions == nil {
		e.portions = map[digest.Digest][]*portion{}
	}
	e.portions[blob.Digest] = slices.Clone(all.portions)
	e.bytes += n
	return all
}

// Fetch brings each portion by a request, and keeps them until ctx ends. Of one that does not come
// those who read it ask for the rest.
func (r *Early) Fetch(ctx context.Context, image *remote.Image) {
	var running sync.WaitGroup
	for _, p := range r.portions {
		running.Go(func() {
			p.fill(ctx, image.Blob(r.blob))
			p.advance(0)
		})
	}
	running.Wait()
	<-ctx.Done()
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	for _, p := range r.portions {
		r.all.bytes -= int64(len(p.buf))
	}
	if len(r.portions) > 0 {
		delete(r.all.portions, r.blob.Digest)
	}
}

// find returns the portion that holds a byte of a blob; nil: there is none.
func (e *Prefetch) find(blob digest.Digest, off int64) *portion {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.portions[blob] {
		if p.off <= off && off < p.off+int64(len(p.buf)) {
			return p
		}
	}
	return nil
}

// suspect forgets what holds any of the n bytes from off on, which were wrong.
func (e *Prefetch) suspect(blob digest.Digest, off, n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if all := e.portions[blob]; len(all) > 0 {
		e.portions[blob] = slices.DeleteFunc(all, func(p *portion) bool {
			return p.off < off+n && off < p.off+int64(len(p.buf))
		})
	}
}

// fill reads the portion from its blob, as far as that comes.
func (p *portion) fill(ctx context.Context, blob *remote.Blob) {
	body, err := Impatient(ctx, blob, p.off, int64(len(p.buf)))
	if err != nil {
		return
	}
	defer body.Close()
	for b := p.buf; len(b) > 0; {
		n, err := io.ReadFull(body, b[:min(stepBytes, len(b))])
		if err != nil {
			return
		}
		b = b[n:]
		p.advance(n)
	}
}

// advance notes that n more bytes are here; 0: no more will come.
func (p *portion) advance(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have += n
	p.over = n == 0
	close(p.more)
	p.more = make(chan struct{})
}

// read waits for bytes from off on, in the blob, and copies them. 0 says that none will come; an
// error is of ctx.
func (p *portion) read(ctx context.Context, b []byte, off int64) (int, error) {
	for {
		p.mu.Lock()
		n := copy(b, p.buf[min(off-p.off, int64(p.have)):p.have])
		over, more := p.over, p.more
		p.mu.Unlock()
		if n > 0 || over {
			return n, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// earlyBody is a range of a blob of which the beginning, at least, was asked for before.
type earlyBody struct {
	s        *Source
	ctx      context.Context
	off, end int64         // in the blob
	rest     io.ReadCloser // what was not; nil: not reached
}

// Read implements io.Reader.
func (b *earlyBody) Read(p []byte) (n int, err error) {
	if b.off == b.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.end-b.off)]
	if early := b.s.prefetch.find(b.s.desc.Digest, b.off); b.rest == nil && early != nil {
		if n, err = early.read(b.ctx, p, b.off); n > 0 || err != nil {
			b.off += int64(n)
			return n, err
		}
	}
	if b.rest == nil {
		if b.rest, err = b.s.ask(b.ctx, b.off, b.end-b.off); err != nil {
			return 0, err
		}
	}
	n, err = b.rest.Read(p)
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
