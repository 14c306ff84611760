package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
)

// Workload is readers in a container.
type Workload struct {
	container *node.Container
	last      words

	mu     sync.Mutex
	line   []byte // what was written after the last newline
	report known.Report
	seen   int
	err    error // of a line that is no report
}

// Reads says how the readers of a container read.
type Reads struct {
	Tree    known.Tree
	Readers int
	Step    time.Duration // see known.Options
}

func (r Reads) argv() []string {
	return []string{"/probe", "load", r.Tree.String(), "/data", fmt.Sprint(r.Readers),
		r.Step.String()}
}

// Run starts a container of ref with readers that wait for Read or Finish.
func Run(ctx context.Context, n *node.Node, ref, id string, r Reads) (*Workload, error) {
	w := &Workload{}
	c, err := n.StartContainer(ctx, node.Snapshotter, ref, id, w, &w.last, r.argv()...)
	if err != nil {
		return nil, err
	}
	w.container = c
	return w, w.await(ctx, "starts", func(known.Report) bool { return true })
}

// Beside starts another group of readers of the same kind, as a process of its
// own in w's container.
func (w *Workload) Beside(ctx context.Context, id string, r Reads) (*Workload, error) {
	o := &Workload{}
	c, err := w.container.Exec(ctx, id, o, &o.last, r.argv()...)
	if err != nil {
		return nil, err
	}
	o.container = c
	return o, o.await(ctx, "starts", func(known.Report) bool { return true })
}

// Write takes the readers' reports; it implements io.Writer.
func (w *Workload) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line = append(w.line, p...)
	for {
		line, rest, ok := bytes.Cut(w.line, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.line = rest
		w.seen++
		var r known.Report
		if err := json.Unmarshal(line, &r); err != nil {
			w.err = fmt.Errorf("the readers wrote %q: %w", line, err)
			continue
		}
		w.report = r
	}
}

// Report is the readers' latest.
func (w *Workload) Report() known.Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.report
}

// Read lets the readers read at random.
func (w *Workload) Read() error { return w.container.Signal(syscall.SIGUSR1) }

// Finish lets the readers read everything once and end, and waits for that. The
// report is the last one in any case.
func (w *Workload) Finish(ctx context.Context) (known.Report, error) {
	err := w.container.Signal(syscall.SIGUSR2)
	if err == nil {
		err = w.await(ctx, "finish", func(r known.Report) bool { return r.Passed })
	}
	return w.Report(), err
}

// Remove ends and removes the container.
func (w *Workload) Remove(ctx context.Context) error { return w.container.Remove(ctx) }

// lastWords is how long what readers have written when they ended may be on its way, through their
// shim, on a busy machine.
const lastWords = 5 * time.Second

// await waits until a report is as done wants it.
func (w *Workload) await(ctx context.Context, what string, done func(known.Report) bool) error {
	var died time.Time
	for {
		alive := w.container.Alive() // before the look at what it has written
		w.mu.Lock()
		seen, r, err := w.seen, w.report, w.err
		w.mu.Unlock()
		switch {
		case err != nil:
			return err
		case seen > 0 && done(r):
			return nil
		case !alive && died.IsZero():
			died = time.Now()
		case !alive && time.Since(died) > lastWords:
			return fmt.Errorf("the readers have died: %q", w.last.String())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the container %s: %w", what, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// words are the first that were written: a Go program that dies says why before all else.
type words struct {
	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer.
func (w *words) Write(p []byte) (int, error) {
	const enough = 600
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p[:min(len(p), enough-min(enough, len(w.buf)))]...)
	return len(p), nil
}

// String is what was written.
func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.buf)
}
