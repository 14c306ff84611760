package layer

import (
	"context"
	"errors"
	"io"

	"github.com/mica-snapshotter/mica/index"
)

// Source is the bytes of one immutable blob. ReadAt fills p or returns an
// error; it tries for as long as ctx lasts where trying can help, and ends soon
// after ctx. Parallel calls are made.
type Source interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	Size() int64
}

// Suspecter is what a Source may be as well: it is told that the n bytes from
// off on which it returned last were wrong, so that it can ask somebody else
// when they are asked for again.
type Suspecter interface {
	Suspect(off, n int64)
}

// Planner is what a Source may be as well: it says whether any of the n bytes from off on are about to come by another way than being
// asked for. Who cannot wait for them asks.
type Planner interface {
	Planned(off, n int64) bool
}

// Index is what a Layer needs of an *index.Layer. Spans is asked for at the
// first read; an error is not kept.
type Index interface {
	Header() index.Header
	Spans() (index.Spans, error)
}

// Store is what a Layer needs of a *store.Layer. Parallel calls are made.
type Store interface {
	// Present and AllPresent say which spans can be read, without waiting.
	Present(i int) bool
	AllPresent() bool
	Count() (spans int, bytes int64)
	// ReadAt reads the device, whose length is a multiple of 512.
	ReadAt(p []byte, off int64) (int, error)
	// WriteSpan keeps a verified span and makes it present.
	WriteSpan(i int, off int64, data []byte) error
	// Windows is the windows section where it is kept, else fs.ErrNotExist.
	Windows() (io.ReaderAt, error)
}

// Server is what a Store may be as well: it is told that a reader got the n bytes from off on by another way
// than its ReadAt, so that it need not keep them at hand.
type Server interface {
	Served(off, n int64)
}

var _ Index = (*index.Layer)(nil)

var (
	// ErrDeadline is wrapped by the error of a read that waited for as long as
	// Options.Deadline allows.
	ErrDeadline = errors.New("not fetched in time")
	// ErrTooLarge is wrapped where a span needs more memory than the Budget
	// has in all.
	ErrTooLarge = errors.New("span is larger than the memory budget")

	errClosed    = errors.New("layer is closed")
	errNoWindows = errors.New("the layer's windows are neither on disk nor to be fetched")
	errNobody    = errors.New("nobody waits for it any more")
	errGaveUp    = errors.New("gave up")
)
