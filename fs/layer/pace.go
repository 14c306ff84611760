package layer

import (
	"bytes"
	"context"
	"io"
	"time"
)

// Ranger is what a Source may be as well: Range returns n bytes from off on as they come. The stream brings all of
// them or an error, and ends soon after ctx.
type Ranger interface {
	Range(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// pace is how quickly requests have been answered lately.
type pace struct{}

// open begins to read a range of a source. One that cannot stream is read whole.
func (l *Layer) open(ctx context.Context, src Source, off, n int64) (io.ReadCloser, error) {
	l.counters.requests.Add(1)
	if r, ok := src.(Ranger); ok {
		return r.Range(ctx, off, n)
	}
	p := make([]byte, n)
	if err := src.ReadAt(ctx, p, off); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

// openBlob begins to read a range of the blob.
func (l *Layer) openBlob(ctx context.Context, off, n int64, prio Priority) (io.ReadCloser, error) {
	start := time.Now()
	body, err := l.open(ctx, l.o.Blob, off, n)
	if err == nil {
		l.o.Budget.flow.answered(time.Since(start), prio)
	}
	return body, err
}
