package profile

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// BlockSize is the grain of recorded ranges, bytes. It is a sixteenth of the span that indexes of
// Mica have by default, and half of the least that Linux reads ahead.
const BlockSize = 1 << blockShift

const blockShift = 16

// together is how far apart first accesses to neighbouring bytes may be to count as one.
const together = 50 * time.Millisecond

// Bounds of a Recorder: at most 4 MiB for the order of accesses (16 GiB of reads) and 2 MiB for the
// bitmaps (1 TiB of devices). What comes after is not recorded.
const (
	maxAccesses = 1 << 18
	maxWords    = 1 << 18
	maxLayers   = 1024
)

// Recorder notes what one start of an image reads. All methods may be called in parallel.
type Recorder struct {
	manifest digest.Digest
	now      func() time.Time
	full     atomic.Bool
	layers   sync.Map // digest.Digest → *seen

	mu      sync.Mutex
	digests []digest.Digest // layers, by seen.id
	order   []access        // first accesses, in this order
	words   int             // of all bitmaps
	start   time.Time       // of the first access
	last    time.Time       // of the last one that was new
}

// access is the first access to a block.
type access struct {
	layer uint32
	block uint32
	at    time.Duration // since Recorder.start
}

// seen is the set of a layer's blocks that were accessed. Bits are set, and the bitmap is replaced
// by a longer one, under Recorder.mu; they are tested without.
type seen struct {
	id   uint32
	bits atomic.Pointer[[]atomic.Uint64]
}

// NewRecorder returns a recorder for a start of the image with the given manifest. now is the
// clock; nil: time.Now.
func NewRecorder(manifest digest.Digest, now func() time.Time) *Recorder {
	if now == nil {
		now = time.Now
	}
	return &Recorder{manifest: manifest, now: now}
}

// Read notes a read of n bytes at the device offset off of a layer. It takes some tens of
// nanoseconds for what was read before.
func (r *Recorder) Read(layer digest.Digest, off, n int64) {
	if off < 0 || n <= 0 || off > maxOffset || n > maxOffset-off {
		return
	}
	first, last := off>>blockShift, (off+n-1)>>blockShift
	if s, ok := r.layers.Load(layer); ok && s.(*seen).all(first, last) || r.full.Load() {
		return
	}
	r.add(layer, first, last)
}

func (s *seen) all(first, last int64) bool {
	bits := *s.bits.Load()
	if last>>6 >= int64(len(bits)) {
		return false
	}
	for b := first; b <= last; b++ {
		if bits[b>>6].Load()&(1<<(b&63)) == 0 {
			return false
		}
	}
	return true
}

// add notes the blocks that are new.
func (r *Recorder) add(layer digest.Digest, first, last int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.layerLocked(layer)
	if s == nil || !r.growLocked(s, last) {
		return
	}
	now, before := r.now(), len(r.order)
	if before == 0 {
		r.start = now
	}
	bits := *s.bits.Load()
	for b := first; b <= last; b++ {
		word, bit := &bits[b>>6], uint64(1)<<(b&63)
		if word.Load()&bit != 0 {
			continue
		}
		if len(r.order) == maxAccesses {
			r.full.Store(true)
			break
		}
		word.Or(bit)
		r.order = append(r.order, access{s.id, uint32(b), now.Sub(r.start)})
	}
	if len(r.order) > before {
		r.last = now
	}
}

// layerLocked returns the layer's set; nil where there are too many layers.
func (r *Recorder) layerLocked(d digest.Digest) *seen {
	if s, ok := r.layers.Load(d); ok {
		return s.(*seen)
	}
	if len(r.digests) == maxLayers {
		return nil
	}
	s := &seen{id: uint32(len(r.digests))}
	s.bits.Store(&[]atomic.Uint64{})
	r.digests = append(r.digests, d)
	r.layers.Store(d, s)
	return s
}

// growLocked makes room for a block; false where that would take too much.
func (r *Recorder) growLocked(s *seen, block int64) bool {
	old := *s.bits.Load()
	want := block>>6 + 1
	if want <= int64(len(old)) {
		return true
	}
	if want-int64(len(old)) > int64(maxWords-r.words) {
		return false
	}
	// Half as much again, so that a sequential reader does not copy at every step.
	size := min(max(want, int64(len(old))*3/2), int64(len(old)+maxWords-r.words))
	longer := make([]atomic.Uint64, size)
	for i := range old {
		longer[i].Store(old[i].Load())
	}
	r.words += len(longer) - len(old)
	s.bits.Store(&longer)
	return true
}

// LastNew returns when something was last read for the first time; zero if nothing was read yet.
func (r *Recorder) LastNew() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// Started returns when something was first read; zero if nothing was read yet.
func (r *Recorder) Started() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.start
}

// Quiet tells whether something was read, and nothing new for the time d.
func (r *Recorder) Quiet(d time.Duration) bool {
	last := r.LastNew()
	return !last.IsZero() && r.now().Sub(last) >= d
}

// Profile returns what was read so far, as the profile of one run. Blocks that are neighbours and
// were first read within 50 ms make one range.
func (r *Recorder) Profile() *Profile {
	r.mu.Lock()
	order, digests := slices.Clone(r.order), slices.Clone(r.digests)
	r.mu.Unlock()
	slices.SortFunc(order, func(a, b access) int {
		return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.block, b.block))
	})
	p := &Profile{Manifest: r.manifest, Runs: 1}
	for _, a := range order {
		p.join(Range{Layer: digests[a.layer], Off: int64(a.block) << blockShift, Size: BlockSize,
			At: a.at.Truncate(tick), Runs: 1})
	}
	p.sort()
	return p
}
