package layer

import (
	"context"
	"errors"
	"io"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// Source is the bytes of one immutable blob. Parallel calls are made.
type Source interface {
	Size() int64
	// Range returns n bytes from off on as they come. The stream brings all of them or an error,
	// and ends soon after ctx; Range tries for as long as ctx lasts where trying can help.
	Range(ctx context.Context, off, n int64) (io.ReadCloser, error)
	// Suspect tells that the n bytes from off on which the source returned last were wrong, so
	// that it can ask somebody else when they are asked for again.
	Suspect(off, n int64)
	// Place names the registry that is asked first. What one registry's answers tell of the way
	// to it says nothing of the way to another.
	Place() string
}

// Index is what a Layer needs of an *index.Layer. Spans is asked for at the
// first read; an error is not kept.
type Index interface {
	Header() index.Header
	Spans() (index.Spans, error)
}

// Store is what a Layer needs of a *store.Layer: verified spans that come and go. Parallel calls
// are made.
type Store interface {
	// Know tells what the spans are, lends memory to compare them in, and has whole called when the
	// last missing span has come.
	Know(spans func() (index.Spans, error), scratch store.Scratch, whole func())
	// Present says whether a span can be read, without waiting.
	Present(i int) bool
	Count() (spans int, bytes int64)
	// Read fills p with verified bytes of the device, whose length is a multiple of 512. An error
	// wraps store.ErrMissing where a span is not present, or not any more, and
	// store.ErrUnreadable where it stays and has to be read past.
	Read(p []byte, off int64) error
	// Put keeps a verified span and makes it present. False: the caller serves it.
	Put(i int, data []byte) (bool, error)
	// Windows is the windows section where it is kept, else fs.ErrNotExist.
	Windows() (io.ReaderAt, error)
	// Touched notes that a reader asks for spans [first, last).
	Touched(first, last int)
	// Evict takes spans away. An error says that they are still there.
	Evict(spans []int) (bytes int64, err error)
	// Empty starts with a new device, without a span.
	Empty() error
}

var _ Index = (*index.Layer)(nil)

var (
	// ErrDeadline is wrapped by the error of a read that waited for as long as
	// Options.Deadline allows.
	ErrDeadline = errors.New("not fetched in time")

	errClosed    = errors.New("layer is closed")
	errNoWindows = errors.New("the layer's windows are neither on disk nor to be fetched")
	errNobody    = errors.New("nobody waits for it any more")
	errGaveUp    = errors.New("gave up")
)

// host is the registry that has the layer's blob.
func (l *Layer) host() *line.Host { return l.o.Budget.Host(l.o.Blob.Place()) }

// open begins to read a range of a source.
func (l *Layer) open(ctx context.Context, src Source, off, n int64) (io.ReadCloser, error) {
	l.counters.requests.Add(1)
	body, err := src.Range(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return &counted{body, &l.counters}, nil
}

// openWindows begins to read a range of the windows section.
func (l *Layer) openWindows(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return l.open(ctx, l.o.Windows, off, n)
}

// counted counts the bytes of a body.
type counted struct {
	io.ReadCloser
	counters *counters
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.counters.fetched.Add(int64(n))
	return n, err
}
