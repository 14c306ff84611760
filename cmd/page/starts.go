package page

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/remote"
)

const (
	maxStarts = 20   // that are remembered
	maxLines  = 2000 // of all of them; then the oldest go, or no more are taken
	// calm is how long a start goes on in which nothing happens but what is brought ahead.
	calm = 10 * time.Second
	// longest is how long a start goes on at the most.
	longest = 2 * time.Minute
)

// Starts is the record of the latest starts: what micad's parts tell of pulls, containers, requests
// and reads that wait is put together here. A request belongs to the latest start from its
// repository that is not over, and a read that waits to the latest one with its layer. The zero
// value is ready, and all methods may run in parallel.
type Starts struct {
	mu    sync.Mutex
	list  []*start // the latest last
	begun int
	lines int // of all starts
}

// start is one start. Starts.mu guards it.
type start struct {
	admin.Start
	repository string
	layers     map[digest.Digest]bool
	asked      bool      // else it is not known whether the image is for Mica
	pulling    int       // calls for layers under way
	waiting    int       // reads
	moved      time.Time // when something of it happened last
	lines      []line
}

// line is a read, or a request that is being followed.
type line struct {
	read    *admin.Line
	request *remote.Request
}

// Announced tells that an image is pulled, for whichever snapshotter.
func (s *Starts) Announced(ref string, manifest digest.Digest, layers []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pullLocked(ref, manifest, layers)
}

// Pulling tells that a layer of an image is asked for, until done is called.
func (s *Starts) Pulling(ref string, manifest digest.Digest, layers []digest.Digest) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.pullLocked(ref, manifest, layers)
	x.Ref, x.asked = ref, true
	x.pulling++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		x.pulling--
		x.moved = time.Now()
		if x.Created.IsZero() {
			x.Pulled = x.moved
		}
	}
}

// Starting tells that a container's snapshot with this key is made on an image's layers.
func (s *Starts) Starting(key, ref string, manifest digest.Digest, layers []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	x := s.findLocked(now, func(x *start) bool {
		return x.Manifest == manifest && (x.Container == "" || x.Container == key)
	})
	if x == nil {
		x = s.beginLocked(now, ref, manifest)
	}
	if x.Container == "" {
		x.Container, x.Created = key, now
	}
	x.addLayers(layers)
	x.asked, x.moved = true, now
}

// Follow tells of a request that is sent.
func (s *Starts) Follow(q *remote.Request) {
	sent := q.Sent()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addLocked(s.findLocked(sent.At, func(x *start) bool {
		return x.repository == sent.Repository
	}), line{request: q})
}

// Waits tells of a read of a layer that waits for the network, until over is called.
func (s *Starts) Waits(layer string, off, n int64) (over func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	x := s.findLocked(now, func(x *start) bool { return x.layers[digest.Digest(layer)] })
	if x == nil {
		return func() {}
	}
	r := &admin.Line{Kind: admin.KindRead, What: layer, Range: fmt.Sprintf("%d-%d", off, off+n-1),
		Sent: now, Bytes: n}
	s.addLocked(x, line{read: r})
	x.waiting++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		x.waiting--
		x.moved = time.Now()
		r.First, r.Last, r.Over = x.moved, x.moved, true
	}
}

// Latest returns the starts, the last first.
func (s *Starts) Latest() []admin.Start {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]admin.Start, 0, len(s.list))
	for _, x := range slices.Backward(s.list) {
		if x.asked {
			all = append(all, x.state(time.Now()))
		}
	}
	return all
}

// pullLocked returns the start that an image is pulled for.
func (s *Starts) pullLocked(ref string, manifest digest.Digest, layers []digest.Digest) *start {
	now := time.Now()
	x := s.findLocked(now, func(x *start) bool {
		return x.Manifest == manifest && x.Created.IsZero()
	})
	if x == nil {
		x = s.beginLocked(now, ref, manifest)
	}
	x.addLayers(layers)
	x.moved = now
	return x
}

// findLocked returns the latest start that is not over and fits.
func (s *Starts) findLocked(now time.Time, fits func(*start) bool) *start {
	for _, x := range slices.Backward(s.list) {
		if !x.over(now) && fits(x) {
			return x
		}
	}
	return nil
}

func (s *Starts) beginLocked(now time.Time, ref string, manifest digest.Digest) *start {
	s.begun++
	x := &start{
		Start:      admin.Start{ID: s.begun, Ref: ref, Manifest: manifest, Began: now},
		repository: proof.RepositoryOf(ref), layers: map[digest.Digest]bool{}, moved: now,
	}
	if s.list = append(s.list, x); len(s.list) > maxStarts {
		s.lines -= len(s.list[0].lines)
		s.list = slices.Delete(s.list, 0, 1)
	}
	return x
}

// addLocked adds a line to a start, for which older starts may lose theirs. nil: it is nobody's.
func (s *Starts) addLocked(x *start, l line) {
	if x == nil {
		return
	}
	for _, old := range s.list {
		if s.lines < maxLines || old == x {
			break
		}
		s.lines -= len(old.lines)
		old.Left += len(old.lines)
		old.lines = nil
	}
	if s.lines >= maxLines {
		x.Left++
		return
	}
	s.lines++
	x.lines = append(x.lines, l)
}

func (x *start) addLayers(layers []digest.Digest) {
	for _, d := range layers {
		x.layers[d] = true
	}
}

// over says that nothing more belongs to the start.
func (x *start) over(now time.Time) bool {
	return now.Sub(x.Began) > longest ||
		x.pulling == 0 && x.waiting == 0 && now.Sub(x.moved) > calm
}

// state returns what is known of the start.
func (x *start) state(now time.Time) admin.Start {
	out := x.Start
	out.Lines = make([]admin.Line, 0, len(x.lines))
	ready := x.Created
	for _, l := range x.lines {
		if l.read == nil {
			out.Lines = append(out.Lines, x.lineOf(l.request.Sent()))
			continue
		}
		out.Lines = append(out.Lines, *l.read)
		if l.read.Last.After(ready) {
			ready = l.read.Last
		}
	}
	slices.SortStableFunc(out.Lines, func(a, b admin.Line) int { return a.Sent.Compare(b.Sent) })
	if x.waiting == 0 && !x.Created.IsZero() && x.over(now) {
		out.Ready = ready
	}
	return out
}

func (x *start) lineOf(s remote.Sent) admin.Line {
	l := admin.Line{
		What: s.What, Host: s.Host, Range: strings.TrimPrefix(s.Range, "bytes="), Sent: s.At,
		First: s.First, Last: s.Last, Bytes: s.Bytes, Status: s.Status, Error: s.Err, Over: s.Over,
	}
	what, name, _ := strings.Cut(s.What, "/")
	switch {
	case what == "blobs" && x.layers[digest.Digest(name)]:
		l.Kind = admin.KindLayer
	case what == "blobs":
		l.Kind = admin.KindBeside
	case what == "manifests" && !strings.HasPrefix(name, "sha256-"):
		l.Kind = admin.KindManifest
	case what == admin.KindToken:
		l.Kind = admin.KindToken
	default: // the referrers API, or its fallback: a tag
		l.Kind = admin.KindLookup
	}
	return l
}
