package layer

import (
	"context"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
)

const (
	// streamCount is how many readers of a layer can be followed at a time.
	streamCount = 8
	// streamSlack is how far from a stream's place a read may begin that counts as its next: files
	// lie behind headers, and the kernel's requests overtake each other.
	streamSlack = 256 << 10
	// A stream that has read aheadAfter bytes on end gets as many bytes ahead of it as aheadFirst
	// says, then twice as many each time, up to aheadMost; all in device bytes.
	aheadAfter = 512 << 10
	aheadFirst = 1 << 20
	aheadMost  = 16 << 20
	// aheadPatience is how long spans are fetched ahead for a reader that does not come.
	aheadPatience = time.Minute
)

// streams notices readers that read on where they stopped.
type streams struct {
	mu   sync.Mutex
	all  [streamCount]stream
	tick uint64 // order of use
	live bool   // there is a stream
}

// stream is one reader, as far as that can be told.
type stream struct {
	at     int64  // where its last read ended
	length int64  // bytes that it has read on end
	window int64  // how far ahead of it is fetched
	edge   int64  // up to where that was done
	used   uint64 // tick of its last read
}

// read notes a read of [off, end), and returns what is to be fetched ahead of it. A read that waits
// for nothing continues a stream, but begins none.
func (s *streams) read(off, end int64, waits bool) (from, to int64) {
	if !s.mu.TryLock() {
		return 0, 0 // the next read tells as much
	}
	defer s.mu.Unlock()
	if !s.live && !waits {
		return 0, 0
	}
	s.tick++
	oldest := &s.all[0]
	for i := range s.all {
		t := &s.all[i]
		if t.used > 0 && off >= t.at-streamSlack && off <= t.at+streamSlack {
			t.used = s.tick
			return t.advance(end)
		}
		if t.used < oldest.used {
			oldest = t
		}
	}
	if waits {
		*oldest = stream{at: end, length: end - off, used: s.tick}
		s.live = true
	}
	return 0, 0
}

// advance moves the stream's place to end.
func (t *stream) advance(end int64) (from, to int64) {
	if end <= t.at {
		return 0, 0
	}
	t.length += end - t.at
	t.at = end
	if t.length < aheadAfter || t.edge-t.at > t.window/2 {
		return 0, 0
	}
	t.window = min(max(2*t.window, aheadFirst), aheadMost)
	from, to = max(t.edge, t.at), t.at+t.window
	t.edge = to
	return from, to
}

// follow notes a read, and begins to fetch what its reader will want next if it reads on.
func (l *Layer) follow(ctx context.Context, off, end int64, waits bool) {
	from, to := l.streams.read(off, end, waits)
	if from >= to || from >= l.deviceSize {
		return
	}
	spans, err := l.index.Spans()
	if err != nil || spans.FromStart() {
		return // the read says so, or brings all
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	var missing []int
	first, last := spans.Cut(from, to)
	for i := first; i < last; i++ {
		f := l.flights[i]
		busy := f != nil && (f.group.begun || f.group.urgency.Priority() <= line.Ahead)
		if !busy && !l.store.Present(i) && affordable(l.o.Budget, &spans[i]) == nil {
			missing = append(missing, i)
		}
	}
	for _, g := range l.startLocked(ctx, spans, missing, line.Ahead) {
		l.expireAfterLocked(g, aheadPatience)
	}
}
