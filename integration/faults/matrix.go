package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// Row is what came of one fault.
type Row struct {
	Fault Fault
	Cells map[Column]Cell
	Log   string        // the end of micad's
	Took  time.Duration // from the node's start to its end
}

// Try makes one row of the matrix. An error is one of the test itself: the fault
// could not be made. The row is what there is until then.
func Try(ctx context.Context, dir string, source *registry.Registry, f Fault) (row Row, err error) {
	row = Row{Fault: f, Cells: map[Column]Cell{}}
	for c, why := range f.Senseless {
		row.Cells[c] = Cell{Senseless: why}
	}
	ctx, cancel := context.WithTimeout(ctx, f.Calm+5*f.limit())
	defer cancel()
	s, err := newStage(ctx, dir, source, f)
	if err != nil {
		return row, err
	}
	defer func() {
		row.Log = s.log()
		err = errors.Join(err, s.Close())
	}()
	if err := s.setUp(ctx); err != nil {
		return row, fmt.Errorf("set up: %w", err)
	}
	cells, err := s.five(ctx)
	if err != nil {
		return row, err
	}
	cells[Restore], err = s.restore(ctx)
	for c, cell := range cells {
		if f.Senseless[c] == "" {
			row.Cells[c] = cell
		}
	}
	return row, err
}

// five makes all cells but that of Restore.
func (s *Stage) five(ctx context.Context) (map[Column]Cell, error) {
	g := s.shut()
	released := sync.OnceFunc(func() { close(g.hold) })
	defer released()
	trying, cancel := context.WithTimeout(ctx, s.fault.limit()+grace)
	defer cancel()
	var mu sync.Mutex
	cells := map[Column]Cell{}
	var both sync.WaitGroup
	try := func(c Column, fn func(ctx context.Context, n int) error) {
		both.Go(func() {
			tries, err := retried(trying, fn)
			mu.Lock()
			defer mu.Unlock()
			cells[c] = Cell{Tries: tries, Trouble: err, Ready: s.sinceStruck()}
		})
	}
	try(Pull, func(ctx context.Context, _ int) error { return s.pull(ctx, Pull) })
	try(Start, func(ctx context.Context, n int) error { return s.run(ctx, Start, fmt.Sprint(n)) })
	err := g.await(ctx)
	if err == nil {
		err = s.strike(ctx, released)
	}
	if err != nil {
		cancel()
		released()
		both.Wait()
		return nil, fmt.Errorf("strike: %w", err)
	}
	both.Wait()
	if s.fault.Reboots {
		maps.Copy(s.past, s.loads)
	}
	finishing, done := context.WithTimeout(ctx, s.fault.Calm+s.fault.limit()+grace)
	defer done()
	var all sync.WaitGroup
	for _, c := range []Column{Pull, Start, Load, Idle, Fill} {
		all.Go(func() {
			mu.Lock()
			cell := cells[c]
			mu.Unlock()
			cell = s.finish(finishing, c, cell)
			mu.Lock()
			cells[c] = cell
			mu.Unlock()
		})
	}
	all.Wait()
	return cells, nil
}

// strike makes the fault, lets the gate go, and lifts the fault.
func (s *Stage) strike(ctx context.Context, release func()) error {
	// a request at the gate meets what Strike sets; where that is nothing, nothing
	s.rules(nil)
	s.mu.Lock()
	s.struck = time.Now()
	s.mu.Unlock()
	err := s.fault.Strike(ctx, s)
	release()
	if err != nil {
		return err
	}
	return s.holdAndLift(ctx, s.struckAt())
}

func (s *Stage) holdAndLift(ctx context.Context, since time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(since.Add(s.fault.Hold))):
	}
	if s.fault.Lift == nil {
		return nil
	}
	return s.fault.Lift(ctx, s)
}

// finish lets the readers of a column read everything, and makes its cell.
func (s *Stage) finish(ctx context.Context, c Column, cell Cell) Cell {
	if cell.Trouble != nil {
		return cell
	}
	var before known.Report
	if old := s.past[c]; old != nil { // it has ended with the reboot; what it has seen counts
		before = old.Report()
	}
	if c == Pull || c == Restore && s.fault.Reboots || s.past[c] != nil {
		_, err := retried(ctx, func(ctx context.Context,
			n int) error {
			return s.run(ctx, c, fmt.Sprintf("-after%d", n))
		})
		if err != nil {
			cell.Report, cell.Trouble = before, err
			return cell
		}
	}
	var filled error
	if c == Fill {
		filled = s.filled(ctx, c) // by itself: hardly anything is read
	}
	r, err := s.load(c).Finish(ctx)
	passed := r.Passed
	cell.Report, cell.Trouble = r.Add(before), errors.Join(err, filled, s.bad[c])
	cell.Report.Passed = passed
	return cell
}

// restore makes the cell of column Restore.
func (s *Stage) restore(ctx context.Context) (Cell, error) {
	if s.fault.Senseless[Restore] != "" {
		return Cell{}, nil
	}
	s.past = map[Column]*Workload{}
	if err := s.run(ctx, Restore, ""); err != nil {
		return Cell{Trouble: err}, nil
	}
	if err := s.reading(ctx, Restore); err != nil {
		return Cell{Trouble: err}, nil
	}
	err := s.restoreStrike(ctx)
	if err != nil {
		return Cell{}, fmt.Errorf("strike during restore: %w", err)
	}
	if s.fault.Reboots {
		s.past[Restore] = s.load(Restore)
	}
	finishing, cancel := context.WithTimeout(ctx, s.fault.limit()+grace)
	defer cancel()
	return s.finish(finishing, Restore, Cell{}), nil
}

func (s *Stage) restoreStrike(ctx context.Context) error {
	if s.fault.Restore != nil {
		return s.fault.Restore(ctx, s)
	}
	if err := s.fault.Strike(ctx, s); err != nil {
		return err
	}
	start := time.Now()
	if err := s.killMicad(ctx); err != nil {
		return err
	}
	return s.holdAndLift(ctx, start)
}

// All makes all rows, some at a time, each in a folder of its own below dir, and
// tells of each when it is done.
func All(ctx context.Context, dir string, source *registry.Registry, list []Fault, atOnce int, done func(Row, error)) {
	slots := make(chan struct{}, atOnce)
	var g sync.WaitGroup
	var mu sync.Mutex
	list = slices.Clone(list) // those that take longest first
	slices.SortStableFunc(list, func(a, b Fault) int {
		return cmp.Compare(b.Hold+b.Calm, a.Hold+a.Calm)
	})
	for i, f := range list {
		slots <- struct{}{}
		g.Go(func() {
			defer func() { <-slots }()
			own := filepath.Join(dir, fmt.Sprint(i))
			err := os.MkdirAll(own, 0o755)
			row := Row{Fault: f}
			start := time.Now()
			if err == nil {
				row, err = Try(ctx, own, source, f)
			}
			row.Took = time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			done(row, err)
		})
	}
	g.Wait()
}

// Faults are all rows. upgrade is the path of a micad of another version.
func Faults(upgrade string) []Fault {
	return slices.Concat(
		daemonFaults(upgrade), registryFaults(), oddRegistries(), diskFaults(), machineFaults(),
	)
}
