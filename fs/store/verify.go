package store

import (
	"cmp"
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

// verifyPiece is how many bytes of the device are read at once.
const verifyPiece = 1 << 20

// VerifyWhole reads the whole device and compares its digest with the diffID.
// It ends early with ctx. It changes nothing: see Mark. The page cache soon
// holds what it held before. What is read is written to also, in order.
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

// copy writes the device into w.
func (l *Layer) copy(ctx context.Context, w io.Writer) error {
	buf := make([]byte, min(verifyPiece, l.size))
	for off := int64(0); off < l.size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), l.size-off)]
		n, err := l.readAt(p, off)
		if err = cmp.Or(ctx.Err(), short(p, n, err)); err != nil {
			return err
		}
		if _, err = w.Write(p); err != nil {
			return err
		}
	}
	return nil
}
