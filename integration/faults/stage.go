package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// Stage is the node of one row, with all that belongs to it.
type Stage struct {
	Node     *node.Node
	Registry *registry.Registry // a front of the row's own
	Mirror   *registry.Registry // another, or nil; rules of Registry do not hold for it
	Host     string             // the registry's name in references

	fault Fault
	dir   string // for files of the row
	undo  []func() error
	lift  func() error // what the latest strike has left to do for Lift
	tail  func()       // lets go what setUp holds, see ofTail

	mu     sync.Mutex
	struck time.Time // the first strike's
	loads  map[Column]*Workload
	past   map[Column]*Workload // of before a reboot
	bad    map[Column]error     // what strikes found
}

// trouble notes that something of a column was not as it should be; nil: nothing.
func (s *Stage) trouble(c Column, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad[c] = errors.Join(s.bad[c], err)
}

// struckAt is when the fault struck first.
func (s *Stage) struckAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.struck
}

// sinceStruck is how long ago the fault struck first; 0: it has not yet.
func (s *Stage) sinceStruck() time.Duration {
	if at := s.struckAt(); !at.IsZero() {
		return time.Since(at)
	}
	return 0
}

// newStage starts the node of a row. dir is for files of the row.
func newStage(ctx context.Context, dir string, source *registry.Registry, f Fault) (*Stage, error) {
	s := &Stage{fault: f, dir: dir, loads: map[Column]*Workload{}, past: map[Column]*Workload{},
		bad: map[Column]error{}}
	front, err := source.Front()
	if err != nil {
		return nil, err
	}
	s.undo = append(s.undo, front.Close)
	front.SetProfile(shaper.Profile{RTT: 2 * time.Millisecond, Rate: 60e6})
	s.Registry, s.Host = front, front.Host()
	opts := node.Options{
		Keep: os.Getenv("NOKEEP") == "",
		// the layers of column Fill's image are the only small ones
		Micad: fmt.Sprintf("[fetch]\nmax_layer = %q\nbandwidth = \"400KB\"\n", maxFilled),
	}
	if f.Options != nil {
		f.Options(&opts)
	}
	s.Node, err = node.Start(ctx, "", opts)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.undo = append(s.undo, s.Node.Close)
	if f.Prepare != nil {
		if err := f.Prepare(ctx, s); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// Close ends the node and the fronts.
func (s *Stage) Close() error {
	var errs []error
	if s.tail != nil {
		s.tail()
	}
	for i := len(s.undo) - 1; i >= 0; i-- {
		errs = append(errs, s.undo[i]())
	}
	return errors.Join(errs...)
}

func (s *Stage) ref(c Column) string { return reference(s.Host, c) }

// reads says how the readers of a column read.
func (s *Stage) reads(c Column) Reads {
	r := Reads{Tree: trees[c], Readers: 3, Step: 80 * time.Millisecond}
	if tree, ok := s.fault.Expect[c]; ok {
		r.Tree = tree
	}
	if c == Fill {
		r.Step = time.Second // the rest is the fill's to fetch
	}
	return r
}

// pull pulls a column's image. containerd takes what is at the registry in the
// meantime for the image, a log-in page too: that is no image, and pulled again.
func (s *Stage) pull(ctx context.Context, c Column) error {
	if err := s.Node.Pull(ctx, node.Snapshotter, s.ref(c)); err != nil {
		return err
	}
	client, err := s.Node.Client()
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, s.Node.Namespace())
	image, err := client.GetImage(ctx, s.ref(c))
	if err != nil {
		return err
	}
	if _, err := image.Config(ctx); err != nil {
		return fmt.Errorf("what came for %s is no image: %w", s.ref(c), err)
	}
	return nil
}

// run starts a column's container; name tells one of its containers from another.
func (s *Stage) run(ctx context.Context, c Column, name string) error {
	w, err := Run(ctx, s.Node, s.ref(c), string(c)+name, s.reads(c))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loads[c] = w
	return nil
}

func (s *Stage) load(c Column) *Workload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loads[c]
}

// log is the end of micad's log.
func (s *Stage) log() string {
	b, err := os.ReadFile(s.Node.Log("micad"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-30_000):])
}

// setUp brings all columns but Pull, Start and Restore into their situation.
func (s *Stage) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*grace)
	defer cancel()
	var g errgroup.Group
	for _, c := range []Column{Start, Load, Idle, Restore} {
		g.Go(func() error { return s.Node.Pull(ctx, node.Snapshotter, s.ref(c)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, c := range []Column{Idle, Load} {
		if err := s.run(ctx, c, ""); err != nil {
			return err
		}
	}
	if s.fault.Whole {
		if _, err := s.load(Idle).Finish(ctx); err != nil {
			return err
		}
		if err := s.run(ctx, Idle, "-again"); err != nil {
			return err
		}
	}
	if err := s.reading(ctx, Load); err != nil {
		return err
	}
	// last of all: it takes some seconds, and must be under way
	early := make(chan struct{})
	s.tail = sync.OnceFunc(func() { close(early) })
	s.rules(func(q *http.Request, _ int64) registry.Fault {
		if ofTail(q) {
			return registry.Fault{Hold: early}
		}
		return registry.Fault{}
	})
	if err := s.Node.Pull(ctx, node.Snapshotter, s.ref(Fill)); err != nil {
		return err
	}
	if err := s.run(ctx, Fill, ""); err != nil {
		return err
	}
	if err := s.load(Fill).Read(); err != nil {
		return err
	}
	return s.filling(ctx)
}

// reading lets a column's readers read, and waits until they do.
func (s *Stage) reading(ctx context.Context, c Column) error {
	w := s.load(c)
	before := w.Report().Reads
	if err := w.Read(); err != nil {
		return err
	}
	const some = 20
	return w.await(ctx, "reads", func(r known.Report) bool { return r.Reads >= before+some })
}

// filling waits until column Fill's image is being filled, and is an error when it is not, or was.
func (s *Stage) filling(ctx context.Context) error {
	return s.awaitImage(ctx, Fill, "is being filled",
		func(l fs.Status) bool { return l.Fetched > 0 && l.Present < l.Total })
}

// filled waits until the image of a column is on the node to the last byte.
func (s *Stage) filled(ctx context.Context, c Column) error {
	return s.awaitImage(ctx, c, "is whole", func(l fs.Status) bool { return l.Present >= l.Total })
}

// awaitImage waits until the sums over all layers of a column's image are as done wants them.
func (s *Stage) awaitImage(ctx context.Context, c Column, what string, done func(sum fs.Status) bool) error {
	var last string
	for {
		var list []fs.Status
		if err := admin.NewClient(s.Node.MicadAddress()).Get(ctx, admin.PathLayers,
			&list); err != nil {
			last = fmt.Sprintf("%v; then %s", err, last)
			last = last[:min(len(last), 1000)]
		} else {
			var sum fs.Status
			n := 0
			for _, l := range list {
				if strings.HasSuffix(l.Ref, "/"+string(c)+":test") {
					n++
					sum.Fetched, sum.Present, sum.Total = sum.Fetched+l.Fetched, sum.Present+l.Present, sum.Total+l.Total
				}
			}
			if n == layers && done(sum) {
				return nil
			}
			last = fmt.Sprintf("%d layers, %d of %d bytes, %d fetched", n, sum.Present, sum.Total,
				sum.Fetched)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the image of column %s %s: %w: %s", c, what, ctx.Err(),
				last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ofTail says whether a request of micad asks for the last bytes of column Fill's larger layer. They
// are held until the fault strikes, so that the image is being filled then however slow the machine is.
func ofTail(q *http.Request) bool {
	const tail = 1_900_000 // of 2.1 MB, behind the container's program
	var first, last int64
	_, err := fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-%d", &first, &last)
	return err == nil && last >= tail && strings.HasPrefix(q.UserAgent(), "micad/") &&
		strings.HasPrefix(q.URL.Path, "/v2/"+string(Fill)+"/blobs/")
}

// gate holds requests of micad for the images of columns Pull and Start, for
// all of the one and for blobs of the other, and the tail of Fill's: all are halfway when the fault
// strikes.
type gate struct {
	hold        chan struct{}
	pull, start atomic.Bool // whether a request has come
}

// shut closes the gate at all ways to the registry.
func (s *Stage) shut() *gate {
	g := &gate{hold: make(chan struct{})}
	rule := func(q *http.Request, _ int64) registry.Fault {
		if !strings.HasPrefix(q.UserAgent(), "micad/") {
			return registry.Fault{}
		}
		if ofTail(q) {
			return registry.Fault{Hold: g.hold}
		}
		for c, came := range map[Column]*atomic.Bool{Pull: &g.pull, Start: &g.start} {
			if strings.HasPrefix(q.URL.Path, "/v2/"+string(c)+"/") &&
				(c == Pull || strings.Contains(q.URL.Path, "/blobs/")) {
				came.Store(true)
				return registry.Fault{Hold: g.hold}
			}
		}
		return registry.Fault{}
	}
	s.rules(rule)
	s.tail() // what has been held meets this rule now
	return g
}

// rules sets the rule of all ways to the registry.
func (s *Stage) rules(rule registry.Rule) {
	s.Registry.SetRule(rule)
	if s.Mirror != nil {
		s.Mirror.SetRule(rule)
	}
}

// await waits until both have come to the gate.
func (g *gate) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for !g.pull.Load() || !g.start.Load() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("came to the gate: pull %v, start %v", g.pull.Load(), g.start.Load())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// retried calls try again and again until it goes well, and returns how often.
func retried(ctx context.Context, try func(ctx context.Context, n int) error) (int, error) {
	for n := 1; ; n++ {
		err := try(ctx, n)
		if err == nil {
			return n, nil
		}
		select {
		case <-ctx.Done():
			return n, fmt.Errorf("%w, after %d tries: %w", ctx.Err(), n, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// killMicad kills micad and waits for the one that its keeper starts.
func (s *Stage) killMicad(ctx context.Context) error {
	old, err := s.Node.SignalMicad(syscall.SIGKILL)
	if err != nil {
		return err
	}
	return s.Node.AwaitMicad(ctx, old, false)
}
