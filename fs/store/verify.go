package store

import (
	"context"
	_ "crypto/sha256" // diffIDs
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// ErrMismatch is wrapped by VerifyWhole's error where the device is not what
// the diffID names.
var ErrMismatch = errors.New("content is not what its digest says")

// verifyBuffer is how many bytes of the device are read at once, and verifyAhead
// how many such reads are ahead of the digest: a disk without readahead, as reads with
// O_DIRECT have it, idles otherwise while the digest is computed.
const (
	verifyBuffer = 1 << 20
	verifyAhead  = 2
)

// VerifyWhole reads the whole device and compares its digest with the diffID.
// It ends early with ctx. It changes nothing: see Mark. The page cache holds
// afterwards what it held before. What is read is written to also, in order.
func (l *Layer) VerifyWhole(ctx context.Context, also ...io.Writer) error {
	want, whole := l.record.DiffID, l.evictions.Load()+1
	h := want.Algorithm().Hash()
	if err := l.copy(ctx, io.MultiWriter(append(also, h)...)); err != nil {
		return fmt.Errorf("verify layer %s: %w", l.digest, err)
	}
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return fmt.Errorf("verify layer %s: device is %s instead of %s: %w", l.digest, got, want, ErrMismatch)
	}
	l.whole.Store(whole)
	return nil
}

// VerifiedWhole says whether VerifyWhole has succeeded, and no span has gone since.
func (l *Layer) VerifiedWhole() bool { return l.whole.Load() == l.evictions.Load()+1 }

// piece is bytes of the device in order, or why there are none.
type piece struct {
	p   []byte
	err error
}

// copy writes the device into w.
func (l *Layer) copy(ctx context.Context, w io.Writer) error {
	pieces := make(chan piece, verifyAhead)
	free := make(chan []byte, verifyAhead)
	for range verifyAhead {
		free <- make([]byte, min(verifyBuffer, max(l.size, 1)))
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(pieces)
		for off := int64(0); off < l.size; off += verifyBuffer {
			var p []byte
			select {
			case <-ctx.Done():
			case p = <-free:
			}
			err := ctx.Err()
			if err == nil {
				p = p[:min(verifyBuffer, l.size-off)]
				err = l.peek(p, off)
			}
			pieces <- piece{p, err}
			if err != nil {
				return
			}
		}
	}()
	var err error
	for x := range pieces {
		if err = x.err; err != nil {
			break
		}
		if _, err = w.Write(x.p); err != nil {
			break
		}
		free <- x.p[:cap(x.p)]
	}
	cancel()
	for range pieces { // until the goroutine has ended
	}
	return err
}

// peek fills p for somebody who does not keep what it reads: what the page cache
// holds is left there, and what it does not hold does not stay there.
func (l *Layer) peek(p []byte, off int64) error {
	absent := l.pages.cold(off, int64(len(p)))
	if absent && l.readDirect(p, off) {
		return nil
	}
	n, err := l.readBuffered(p, off)
	if absent {
		l.passed(off, int64(n))
	}
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
