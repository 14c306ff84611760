package fs

import (
	"context"
	"io"

	"github.com/mica-snapshotter/mica/fs/pull"
	"github.com/mica-snapshotter/mica/index/targz"
)

// A layer is whole, or not here, whose blob can only be decoded from its beginning: its spans are
// index.FromStart. It is served as any other, goes from the disk only as a whole, and the first
// read of what is missing fetches all of it (layer.Options.Unpack).

// whole says whether v is such a layer.
func (v *openLayer) whole() bool {
	spans, err := v.index.Spans()
	return err == nil && spans.FromStart()
}

// readerMemory is what a decoder may take without waiting for scans, bytes: more than one with an
// ordinary window. A container's read must not wait for somebody's slow pull.
const readerMemory = 16 << 20

// unpack is layer.Options.Unpack.
func (v *openLayer) unpack(ctx context.Context, blob io.Reader) (io.ReadCloser, error) {
	c := v.t.pulls.Scan(ctx)
	out, err := targz.Unpack(blob, func(n int64) error {
		if n <= readerMemory {
			c.Count(n)
			return nil
		}
		return c.Take(n)
	})
	if err != nil {
		c.End()
		return nil, err
	}
	return &metered{out, c}, nil
}

// metered is a decoder whose memory counts.
type metered struct {
	io.ReadCloser
	memory *pull.Scan
}

// Close implements io.Closer.
func (m *metered) Close() error {
	defer m.memory.End()
	return m.ReadCloser.Close()
}
