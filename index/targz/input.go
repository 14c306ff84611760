package targz

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/index/inflate"
)

const (
	chunkSize = 128 << 10
	chunks    = 4
	// reserve is the room before a chunk for what is left of the one before:
	// less than a symbol or a block header.
	reserve = inflate.MinInput
	// maxIdle is how often in a row a reader may return nothing at all.
	maxIdle = 100
)

// chunk is a piece of the blob.
type chunk struct {
	mem [reserve + chunkSize]byte
	n   int // bytes of the blob, from mem[reserve] on
}

// input reads and hashes the blob ahead of the inflating goroutine.
type input struct {
	ctx    context.Context
	blob   io.Reader
	free   chan *chunk
	filled chan *chunk // closed at the end of the blob
	now    *chunk      // whose bytes the inflating goroutine has

	// Owned by run until it has returned.
	hash  hash.Hash
	size  int64
	ended bool
}

func newInput(ctx context.Context, blob io.Reader) *input {
	in := &input{ctx: ctx, blob: blob, hash: sha256.New(), free: make(chan *chunk, chunks), filled: make(chan *chunk, chunks)}
	for range chunks {
		in.free <- new(chunk)
	}
	return in
}

// run reads the blob to its end.
func (in *input) run() error {
	for {
		c, err := receive(in.ctx, in.free)
		if err != nil {
			return err
		}
		atEnd, err := in.fill(in.ctx, c)
		if err != nil {
			return err
		}
		in.filled <- c // never blocks: it has room for all chunks
		if atEnd {
			close(in.filled)
			return nil
		}
	}
}

// fill reads and hashes the next chunk.
func (in *input) fill(ctx context.Context, c *chunk) (atEnd bool, err error) {
	c.n, atEnd, err = readFull(ctx, in.blob, c.mem[reserve:])
	in.hash.Write(c.mem[reserve : reserve+c.n])
	in.size += int64(c.n)
	in.ended = in.ended || atEnd
	if err != nil {
		return false, fmt.Errorf("read blob at %d: %w", in.size, err)
	}
	return atEnd, nil
}

// blame reads the blob to its end, when run has returned, and makes a Malformed of err.
func (in *input) blame(ctx context.Context, err error) error {
	for c := new(chunk); !in.ended; {
		if _, readErr := in.fill(ctx, c); readErr != nil {
			return fmt.Errorf("%w (and the rest of the blob cannot be read: %w)", err, readErr)
		}
	}
	return &Malformed{Layer: in.digest(), Err: err}
}

// readFull fills p, or less at the end of r. Unlike io.ReadFull it tells the end
// from r's own io.ErrUnexpectedEOF, which is a connection that broke.
func readFull(ctx context.Context, r io.Reader, p []byte) (n int, atEnd bool, err error) {
	for idle := 0; n < len(p); {
		if err := ctx.Err(); err != nil {
			return n, false, err
		}
		m, err := r.Read(p[n:])
		n += m
		switch {
		case err == io.EOF:
			return n, true, nil
		case err != nil:
			return n, false, err
		case m > 0:
			idle = 0
		default:
			if idle++; idle == maxIdle {
				return n, false, io.ErrNoProgress
			}
		}
	}
	return n, false, nil
}

// more returns what is left of the bytes that the call before returned, with
// the next chunk behind it. All slices of earlier calls become invalid. io.EOF
// at the end of the blob, with left alone.
func (in *input) more(left []byte) ([]byte, error) {
	c, err := receive(in.ctx, in.filled)
	if err != nil {
		return left, err
	}
	var src []byte
	if len(left) <= reserve {
		src = c.mem[reserve-len(left) : reserve+c.n]
		copy(src, left)
	} else {
		// A long gzip header; its parser bounds it.
		src = make([]byte, 0, len(left)+c.n)
		src = append(src, left...)
		src = append(src, c.mem[reserve:reserve+c.n]...)
	}
	if in.now != nil {
		in.free <- in.now
	}
	in.now = c
	return src, nil
}

// digest of the blob, when run has returned.
func (in *input) digest() digest.Digest { return digest.NewDigest(digest.SHA256, in.hash) }
