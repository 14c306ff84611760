package copies

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/source"
)

const (
	// A request may take patience, and as long as its bytes do at slowest, bytes a second: the
	// layer's own registry may be quicker.
	patience = 10 * time.Second
	slowest  = 64 << 10
	// roomless is how long a push that has nothing in memory waits for room: others may keep it.
	roomless = 2 * time.Second
	// idleFor is how long frames are kept while no layer takes any.
	idleFor = 15 * time.Second
)

// Push is a copy on its way.
type Push struct {
	Copy
	all     *Copies
	numbers map[spanOf]int // of the frames
	over    chan struct{}  // closed when it has ended and layers use no frame
	ctx     context.Context
	cancel  context.CancelFunc
	idle    *time.Timer
	failed  sync.Once
	isOver  sync.Once

	mu     sync.Mutex
	states []state                   // of the frames
	layers map[digest.Digest]Layer   // those that are open; nil: it is not to have any
	kept   map[digest.Digest][]frame // of those that are not
	memory int64                     // bytes of Budget.Frames
	offers int                       // frames that layers use
	ended  bool                      // nothing is coming any more
}

type spanOf struct {
	layer digest.Digest
	span  int
}

type state uint8

const (
	ahead state = iota
	sent
	gone
)

// frame is a frame that is here.
type frame struct {
	span int
	buf  *line.Buffer
}

// Begin begins a push, which ends with ctx. Run brings it.
func (c *Copies) Begin(ctx context.Context, copied Copy) *Push {
	p := &Push{
		Copy: copied, all: c,
		numbers: map[spanOf]int{}, over: make(chan struct{}),
		states: make([]state, len(copied.Frames)),
		layers: map[digest.Digest]Layer{}, kept: map[digest.Digest][]frame{},
	}
	for n, f := range copied.Frames {
		p.numbers[spanOf{f.Layer, f.Span}] = n
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.idle = time.AfterFunc(idleFor, p.cancel)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, p)
	return p
}

// Run brings the frames by requests of which the nth has about size(n) bytes, so many at a time. It
// returns when layers have taken all, or the push has ended.
func (p *Push) Run(requests int, size func(n int) int64) {
	defer p.close()
	var running sync.WaitGroup
	slots := make(chan struct{}, requests)
	for n, from, to := 0, 0, 0; ; n++ {
		slots <- struct{}{}
		if from, to = p.cut(to, size(n)); from == to || !p.begin(from, to) {
			break
		}
		running.Go(func() {
			defer func() { <-slots }()
			if err := line.Guarded(func() error { return p.fetch(from, to) }); err != nil {
				p.fail(err)
			}
		})
	}
	running.Wait()
	p.end()
	<-p.ctx.Done()
}

// close frees what no layer has taken.
func (p *Push) close() {
	p.cancel()
	p.idle.Stop()
	p.all.mu.Lock()
	p.all.all = slices.DeleteFunc(p.all.all, func(o *Push) bool { return o == p })
	p.all.mu.Unlock()
	p.mu.Lock()
	kept := p.kept
	p.kept = nil
	p.mu.Unlock()
	for _, frames := range kept {
		for _, f := range frames {
			p.free(f, 0)
		}
	}
}

// cut returns the next request's frames, [from, to), from at the earliest: they lie one behind the
// other and have size bytes at most, or are one. Those before and behind them that nobody lacks are
// left out.
func (p *Push) cut(from int, size int64) (int, int) {
	for from < len(p.Frames) && !p.lacked(from) {
		p.set(from, from+1, gone)
		from++
	}
	if from == len(p.Frames) {
		return from, from
	}
	to := from + 1
	size -= p.Frames[from].Size
	for i := to; i < len(p.Frames); i++ {
		f, before := p.Frames[i], p.Frames[i-1]
		if size -= f.Size; size < 0 || f.Off != before.Off+before.Size {
			break
		}
		if p.lacked(i) {
			to = i + 1
		}
	}
	return from, to
}

// lacked says whether a frame's layer may have a use for it.
func (p *Push) lacked(n int) bool {
	f := p.Frames[n]
	p.mu.Lock()
	l, open := p.layers[f.Layer]
	p.mu.Unlock()
	return f.Size <= p.all.budget.Frames.Size() && (!open || l != nil && l.Lacks(f.Span))
}

func (p *Push) set(from, to int, s state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := from; i < to; i++ {
		p.states[i] = s
	}
}

// size returns how many bytes frames have that lie one behind the other.
func (p *Push) size(from, to int) int64 {
	return p.Frames[to-1].Off + p.Frames[to-1].Size - p.Frames[from].Off
}

// begin waits for the memory of frames; false: the push ends without them.
func (p *Push) begin(from, to int) bool {
	n := p.size(from, to)
	for {
		ctx, cancel := context.WithTimeout(p.ctx, roomless)
		err := p.all.budget.Frames.Acquire(ctx, n, line.NewUrgency(line.Replay))
		cancel()
		if err == nil {
			p.changed(n, 0)
			p.set(from, to, sent)
			return true
		}
		if p.ctx.Err() != nil || p.hasNothing() {
			return false
		}
	}
}

// changed notes that the push has n bytes of memory more, and layers use so many frames more.
func (p *Push) changed(n int64, offers int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.memory += n
	p.offers += offers
	if p.ended && p.offers == 0 {
		p.isOver.Do(func() { close(p.over) })
	}
	if p.ended && p.memory == 0 {
		p.cancel()
	}
}

func (p *Push) hasNothing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.memory == 0
}

// fetch brings frames by one request.
func (p *Push) fetch(from, to int) error {
	n := p.size(from, to)
	left := n
	defer func() {
		p.all.budget.Frames.Release(left)
		p.changed(-left, 0)
	}()
	limit := patience + time.Duration(n)*time.Second/slowest
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	body, err := source.Impatient(ctx, p.Image.Blob(p.Blob), p.Frames[from].Off, n)
	if err != nil {
		return err
	}
	defer body.Close()
	for i, f := range p.Frames[from:to] {
		buf := p.all.budget.Buffer(f.Size)
		if _, err := io.ReadFull(body, buf.B); err != nil {
			buf.Free()
			return err
		}
		left -= f.Size
		p.came(from+i, buf)
	}
	return nil
}

// came offers a frame that is here, or keeps it for its layer.
func (p *Push) came(n int, buf *line.Buffer) {
	d, f := p.Frames[n].Layer, frame{p.Frames[n].Span, buf}
	p.mu.Lock()
	p.states[n] = gone
	l, open := p.layers[d]
	if !open {
		p.kept[d] = append(p.kept[d], f)
	}
	p.mu.Unlock()
	if open {
		p.offer(l, f)
	}
}

// open has a layer take its frames; nil: nobody is to have them.
func (p *Push) open(d digest.Digest, l Layer) {
	p.mu.Lock()
	p.layers[d] = l
	kept := p.kept[d]
	delete(p.kept, d)
	p.mu.Unlock()
	for _, f := range kept {
		p.offer(l, f)
	}
}

func (p *Push) offer(l Layer, f frame) {
	p.idle.Reset(idleFor)
	if l == nil {
		p.free(f, 0)
		return
	}
	p.changed(0, 1)
	l.Offer(p.ctx, f.span, f.buf.B, func(wrong error) {
		if wrong != nil {
			p.fail(wrong)
		}
		p.free(f, -1)
	})
}

// free gives the memory of a frame back, and changes how many layers use.
func (p *Push) free(f frame, offers int) {
	n := int64(len(f.buf.B))
	f.buf.Free()
	p.all.budget.Frames.Release(n)
	p.changed(-n, offers)
}

// fail ends a push that is of no use.
func (p *Push) fail(err error) {
	p.failed.Do(func() {
		if p.ctx.Err() != nil {
			return // nobody wants it any more
		}
		p.all.log.Warn("the copy of what a start reads is of no use: all is fetched from the layer",
			"copy", p.Blob.Digest, "err", err)
		p.end()
		p.cancel()
	})
}

// end has nobody wait for what has not come.
func (p *Push) end() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.changed(0, 0)
}

// has says whether the copy has frames of a layer.
func (p *Push) has(d digest.Digest) bool {
	return slices.ContainsFunc(p.Frames, func(f published.Frame) bool { return f.Layer == d })
}

// coming says whether a frame is sent, or else ahead of that.
func (p *Push) coming(s spanOf, already bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.numbers[s]
	return ok && !p.ended && (p.states[n] == sent || p.states[n] == ahead && !already)
}
