package ranges

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/remote/registry"
)

const (
	// spoolIdle is how long a spool is kept, and goes on coming, without a reader.
	spoolIdle = 30 * time.Minute
	// spoolAgain is how old a spool is at least that is thrown away because bytes of it are wrong:
	// a host that sends nothing else is not asked for the whole blob again and again.
	spoolAgain = time.Minute
	// spoolNear is how many bytes ahead of what has come a read just waits for them. One that is
	// farther ahead asks a host now and then whether it honours ranges by now.
	spoolNear = 4 << 20
	// spoolProbes is how often that is done at the most, and spoolProbe the pause before the first
	// time; each further one is twice as long. A host that still sends the whole blob has sent some
	// of it when it is told to stop.
	spoolProbes = 8
	spoolProbe  = 2 * time.Second
	// spoolRoom is how many bytes a spool leaves of the disk, and noRoomFor how long there are no
	// spools where that is too little: then each read reads over what lies before its range.
	spoolRoom = 64 << 20
	noRoomFor = time.Minute
)

var (
	// errIgnored is the error of a host that answered a range with the whole blob.
	errIgnored = errors.New("ranges are ignored")
	// errNoRoom says that a spool's file does not take what comes.
	errNoRoom = errors.New("the file for a blob that comes whole cannot be written")
	// errDiscarded says that a spool was thrown away: there may be another.
	errDiscarded = errors.New("the bytes of a blob that came whole were thrown away")
)

// spools are the blobs of hosts that ignore ranges, by digest.
type spools struct {
	client  *registry.Client
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	all    map[digest.Digest]*spool
	noRoom time.Time // until then
}

// spool is a blob that comes whole, from its first byte to its last, into a file without a name.
// All ranges of it are read there: each waits until its bytes have passed. A spool that has failed
// goes on where it ended when somebody reads it again.
type spool struct {
	owner  *spools
	digest digest.Digest
	size   int64
	file   *os.File
	began  time.Time

	mu        sync.Mutex
	readers   int
	discarded bool // the file is closed when the last reader has gone
	coming    bool // a goroutine fills the file
	cancel    context.CancelCauseFunc
	upTo      int64         // bytes that have come
	err       error         // why no more come; nil while they do, and where all have
	more      chan struct{} // closed, and replaced, when upTo or err changes
	idle      *time.Timer   // runs while nobody reads
	probes    int
	probed    time.Time
}

// get returns the spool of a blob, one that is coming or has come, nil if there is none.
func (a *spools) get(d digest.Digest) *spool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.all[d]; s != nil && s.sound() {
		return s
	}
	return nil
}

func (s *spool) sound() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil
}

// open returns a reader of what a stream lacks, and has its blob come if it does not yet.
func (a *spools) open(of *stream) (*spoolReader, error) {
	b := of.blob
	if r, err := a.join(of, nil); r != nil || err != nil {
		return r, err
	}
	file, err := nameless(a.client.SpoolDir, b.desc.Size)
	if err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.noRoomLocked(err)
		return nil, err
	}
	return a.join(of, file)
}

// join is open, with a file for a new spool; where there is none, it makes none.
func (a *spools) join(of *stream, file *os.File) (*spoolReader, error) {
	b := of.blob
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	s := a.all[b.desc.Digest]
	if file != nil && (s != nil || a.closed) {
		_ = file.Close() // somebody was faster
	}
	switch {
	case a.closed:
		return nil, errClosed
	case s != nil:
		return s.read(of), nil
	case file == nil && now.Before(a.noRoom):
		return nil, errNoRoom
	case file == nil:
		return nil, nil
	}
	s = &spool{
		owner: a, digest: b.desc.Digest, size: b.desc.Size, file: file,
		began: now, probed: now, more: make(chan struct{}),
	}
	s.idle = time.AfterFunc(spoolIdle, s.expire)
	if a.all == nil {
		a.all = map[digest.Digest]*spool{}
	}
	a.all[s.digest] = s
	a.client.Logger.Warn("the registry ignores ranges: the blob is downloaded whole",
		"ref", b.locations[0].ref, "blob", s.digest, "bytes", s.size)
	return s.read(of), nil
}

// nameless creates a file for n bytes that nobody else can open.
func nameless(dir string, n int64) (*os.File, error) {
	f, err := os.CreateTemp(dir, "blob-*")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRoom, err)
	}
	var disk syscall.Statfs_t
	if err = os.Remove(f.Name()); err == nil {
		err = syscall.Fstatfs(int(f.Fd()), &disk)
	}
	if free := int64(disk.Bavail) * disk.Bsize; err == nil && free < n+spoolRoom {
		err = fmt.Errorf("%d bytes are free at %s", free, f.Name())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", errNoRoom, err), f.Close())
	}
	return f, nil
}

func (a *spools) noRoomLocked(err error) {
	a.noRoom = time.Now().Add(noRoomFor)
	a.client.Logger.Warn("the registry ignores ranges, and there is no room to download blobs whole: "+
		"each read downloads what lies before it", "err", err)
}

// read adds a reader.
func (s *spool) read(of *stream) *spoolReader {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers++
	s.idle.Stop()
	if !s.coming && s.upTo < s.size {
		s.coming, s.err = true, nil
		// It outlives the reader that it begins for.
		ctx, cancel := context.WithCancelCause(context.WithoutCancel(of.ctx))
		s.cancel = cancel
		b := *of.blob
		b.aside = false // others read it as well
		rest := b.stream(ctx, s.upTo, s.size-s.upTo, whole)
		s.owner.running.Go(func() {
			defer cancel(nil)
			s.fill(rest)
		})
	}
	return &spoolReader{spool: s, ctx: of.ctx, off: of.off, end: of.off + of.left}
}

// fill writes what comes into the file.
func (s *spool) fill(from *stream) {
	defer from.Close()
	p := make([]byte, 256<<10)
	for at := from.off; at < s.size; {
		n, err := from.Read(p)
		if n > 0 {
			if _, werr := s.file.WriteAt(p[:n], at); werr != nil {
				n, err = 0, fmt.Errorf("%w: %w", errNoRoom, werr)
			}
		}
		at += int64(n)
		if errors.Is(err, errNoRoom) {
			s.owner.full(s, err) // before a reader is told, who would have it come again
		}
		s.advance(int64(n), err)
		if err != nil {
			return
		}
	}
	s.advance(0, nil)
}

// advance notes that n more bytes are in the file, and why no more come, if so.
func (s *spool) advance(n int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upTo += n
	s.err = err
	if err != nil || s.upTo == s.size {
		s.coming = false
	}
	close(s.more)
	s.more = make(chan struct{})
}

// near says whether a range is here, or comes soon.
func (s *spool) near(end int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return end <= s.upTo+spoolNear
}

// probe says whether it is time to ask again for a range.
func (s *spool) probe(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probes == spoolProbes || now.Sub(s.probed) < spoolProbe<<s.probes {
		return false
	}
	s.probes++
	s.probed = now
	return true
}

// remove throws away what has come of a blob, where it is as only says.
func (a *spools) remove(d digest.Digest, only func(s *spool) bool) {
	a.mu.Lock()
	s := a.all[d]
	if s == nil || !only(s) {
		a.mu.Unlock()
		return
	}
	delete(a.all, d)
	a.mu.Unlock()
	s.discard(errDiscarded)
}

// forget removes what has come of a blob that nobody needs any more.
func (a *spools) forget(d digest.Digest) {
	a.remove(d, func(*spool) bool { return true })
}

// suspect removes a spool some bytes of which were wrong, unless it is young.
func (a *spools) suspect(d digest.Digest) {
	a.remove(d, func(s *spool) bool { return time.Since(s.began) >= spoolAgain })
}

// full removes a spool that the disk does not take.
func (a *spools) full(s *spool, err error) {
	a.remove(s.digest, func(o *spool) bool {
		if o == s {
			a.noRoomLocked(err)
		}
		return o == s
	})
}

// expire removes a spool that nobody has read for long.
func (s *spool) expire() {
	s.owner.remove(s.digest, func(o *spool) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return o == s && s.readers == 0
	})
}

// discard ends the download, whose error is why. Who reads what has come goes on.
func (s *spool) discard(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.discarded {
		return
	}
	s.discarded = true
	s.idle.Stop()
	if s.cancel != nil {
		s.cancel(why)
	}
	s.closeLocked()
}

func (s *spool) closeLocked() {
	if s.discarded && s.readers == 0 {
		_ = s.file.Close() // it has no name, so nothing of it is wanted any more
	}
}

// close ends all downloads and waits for them.
func (a *spools) close() {
	a.mu.Lock()
	a.closed = true
	all := a.all
	a.all = nil
	a.mu.Unlock()
	for _, s := range all {
		s.discard(errClosed)
	}
	a.running.Wait()
}

// spoolReader reads a range of a spool.
type spoolReader struct {
	spool    *spool
	ctx      context.Context
	off, end int64
	closed   bool
}

// Read implements io.Reader.
func (r *spoolReader) Read(p []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	s := r.spool
	for {
		s.mu.Lock()
		upTo, err, more := s.upTo, s.err, s.more
		s.mu.Unlock()
		switch {
		case upTo > r.off:
			n, err := s.file.ReadAt(p[:min(int64(len(p)), r.end-r.off, upTo-r.off)], r.off)
			r.off += int64(n)
			if n > 0 || len(p) == 0 {
				return n, nil
			}
			return 0, fmt.Errorf("%w: %w", errNoRoom, registry.NoEOF(err))
		case err != nil:
			return 0, err
		}
		select {
		case <-more:
		case <-r.ctx.Done():
			return 0, fmt.Errorf("the registry ignores ranges, so %s comes whole; "+
				"%d of its %d bytes are here: %w", s.digest, upTo, s.size, context.Cause(r.ctx))
		}
	}
}

// Close implements io.Closer.
func (r *spoolReader) Close() error {
	s := r.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.closed {
		r.closed = true
		if s.readers--; s.readers == 0 && !s.discarded {
			s.idle.Reset(spoolIdle)
		}
		s.closeLocked()
	}
	return nil
}
