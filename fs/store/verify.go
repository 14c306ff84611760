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

const verifyBuffer = 1 << 20

// VerifyWhole reads the whole device and compares its digest with the diffID.
// It ends early with ctx. It changes nothing: see Mark.
func (l *Layer) VerifyWhole(ctx context.Context) error {
	want := l.record.DiffID
	h := want.Algorithm().Hash()
	r := io.NewSectionReader(l, 0, l.size)
	buf := make([]byte, min(verifyBuffer, max(l.size, 1)))
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify layer %s: %w", l.digest, err)
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("verify layer %s: %w", l.digest, err)
		}
	}
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return fmt.Errorf("verify layer %s: device is %s instead of %s: %w", l.digest, got, want, ErrMismatch)
	}
	return nil
}
