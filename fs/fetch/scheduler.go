package fetch

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/line"
)

// Layer is a layer that bytes are fetched for. *layer.Layer is one. Parallel calls are made.
type Layer interface {
	// Size is the length of the device, bytes.
	Size() int64
	// Next returns the first run of the device's range [off, end) that is missing, as long as one
	// request of that priority; Size 0: nothing is.
	Next(off, end int64, prio line.Priority) (layer.Missing, error)
	// Fetch returns when the store has the range. It ends soon after ctx.
	Fetch(ctx context.Context, off, n int64, prio line.Priority) error
	// Expect says that a replay is going to bring a range.
	Expect(off, n int64) error
	// Uses says what became of what was expected.
	Uses() layer.Uses
}

var _ Layer = (*layer.Layer)(nil)

// Policy says what is fetched that no reader has asked for.
type Policy string

// The policies.
const (
	All     Policy = "all"     // profiles, and then all the rest
	Profile Policy = "profile" // profiles only
	None    Policy = "none"    // nothing
)

// ParsePolicy returns the policy of that name.
func ParsePolicy(s string) (Policy, error) {
	p := Policy(s)
	if !slices.Contains([]Policy{All, Profile, None}, p) {
		return "", fmt.Errorf(`fill %q: use "all", "profile" or "none"`, s)
	}
	return p, nil
}

// Defaults of Options.
const (
	DefaultReplayRequests = 24
	DefaultFillRequests   = 8
)

// Options of a Scheduler. The zero value fetches everything, without limits.
type Options struct {
	Fill      Policy // "": All
	Bandwidth int64  // compressed bytes per second of replays and fills together; 0: no limit
	// ReplayRequests and FillRequests are how many of either are under way at most; 0: the
	// defaults. How many bytes a fill has in flight is the Budget's to say.
	ReplayRequests, FillRequests int
	// Budget is the layers', which knows whether a container needs the cores; nil: a new one.
	Budget *line.Budget
	// Hold tells for how long nothing is to be fetched at all; nil: it is never held.
	Hold     func() time.Duration
	MaxLayer int64        // layers whose device is larger, in bytes, are not filled; 0: no limit
	Log      *slog.Logger // nil: slog.Default()
}

// Stats is what a Scheduler has done.
type Stats struct {
	ReplayRequests, FillRequests int64 // begun
	ReplayBytes, FillBytes       int64 // compressed, fetched with success
}

// Scheduler fetches ahead for all layers of a node. New makes it, Run runs it.
type Scheduler struct {
	o    Options
	log  *slog.Logger
	wake chan struct{} // a token: there may be something to do

	free time.Time // when the limited bandwidth is free again; Run's own

	mu      sync.Mutex
	layers  map[digest.Digest]*entry
	fills   []*entry // in the order in which they came
	spots   []*spot  // the latest last
	replays []*Replay
	running struct{ replay, fill int } // requests under way
	stats   Stats
}

// entry is a layer that the scheduler knows. Its fields are guarded by Scheduler.mu, digest and
// layer never change.
type entry struct {
	digest    digest.Digest
	layer     Layer
	users     sync.WaitGroup // of layer; none is added once forgotten is set
	jobs      map[*job]struct{}
	forgotten bool
	stopped   bool // its bytes are wrong: nothing is fetched any more
	backoff   backoff
	uses      []*use // by replays

	filling  bool
	asked    int   // how often Fill was called
	cursor   int64 // device offset from where the fill goes on; from 0 again where some is left at the end
	filled   int   // of jobs, those of the fill
	progress bool  // since cursor was 0, something came
}

// New returns a scheduler that knows no layers.
func New(o Options) *Scheduler {
	if o.Fill == "" {
		o.Fill = All
	}
	if o.ReplayRequests == 0 {
		o.ReplayRequests = DefaultReplayRequests
	}
	if o.FillRequests == 0 {
		o.FillRequests = DefaultFillRequests
	}
	if o.Budget == nil {
		o.Budget = line.New(0, 0)
	}
	if o.Hold == nil {
		o.Hold = func() time.Duration { return 0 }
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Scheduler{
		o: o, log: o.Log, wake: make(chan struct{}, 1),
		layers: map[digest.Digest]*entry{},
	}
}

// Add makes a layer known: what replays name of it is fetched from now on, of replays that began
// before too. A layer that is known already stays.
func (s *Scheduler) Add(d digest.Digest, l Layer) {
	if s.o.Fill == None {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.layers[d] == nil {
		s.layers[d] = &entry{digest: d, layer: l, jobs: map[*job]struct{}{}}
		for _, r := range s.replays {
			r.knowLocked(d)
		}
		s.signal()
	}
}

// Fill fetches all that a known layer lacks, after what was given to Fill before. It does nothing
// where the policy, or the layer's size, says so.
func (s *Scheduler) Fill(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.layers[d]
	if e != nil {
		e.asked++
	}
	if e == nil || e.filling || e.stopped || s.o.Fill != All || (s.o.MaxLayer > 0 && e.layer.Size() > s.o.MaxLayer) {
		return
	}
	e.filling, e.cursor, e.progress = true, 0, true
	s.fills = append(s.fills, e)
	s.signal()
}

// Forget ends all that is done for a layer, and waits for it: then the layer can be closed.
func (s *Scheduler) Forget(d digest.Digest) {
	s.mu.Lock()
	e := s.layers[d]
	if e == nil {
		s.mu.Unlock()
		return
	}
	delete(s.layers, d)
	e.forgotten = true
	s.dropLocked(e)
	for _, u := range e.uses {
		u.end()
	}
	for j := range e.jobs {
		if j.cancel != nil {
			j.cancel()
		}
	}
	s.signal()
	s.mu.Unlock()
	e.users.Wait()
}

// Stats returns the scheduler's numbers now.
func (s *Scheduler) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// signal wakes Run.
func (s *Scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
