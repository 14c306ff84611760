package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// program is a container's program that runs. It is safe for parallel use.
type program struct {
	started, ready time.Time // of its first and last line; set before isReady is closed

	cancel  context.CancelFunc
	ended   chan struct{} // closed when ctr tasks start has returned
	err     error         // what it returned; valid after ended
	isReady chan struct{}

	mu   sync.Mutex
	text bytes.Buffer
}

// run starts the task of a container and waits until it is ready. A program
// that serves goes on until stop.
func (t *trial) run(ctx context.Context, id string) (*program, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &program{cancel: cancel, ended: make(chan struct{}), isReady: make(chan struct{})}
	go func() { // stop waits for it
		defer close(p.ended)
		p.err = node.CommandTo(ctx, p, "ctr", "--address", t.node.Address(), "--namespace",
			t.node.Namespace(), "tasks", "start", id)
	}()
	select {
	case <-p.isReady:
		return p, nil
	case <-p.ended:
		select {
		case <-p.isReady: // its last line was what it ended with
			return p, nil
		default:
		}
	}
	p.stop()
	return nil, fmt.Errorf("the program was not ready, it printed %q: %w", p.output(), p.err)
}

// stop ends ctr and waits for it. The container itself ends with its node.
func (p *program) stop() {
	p.cancel()
	<-p.ended
}

// output is what the program has printed.
func (p *program) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// Write implements io.Writer: it takes what the program prints.
func (p *program) Write(b []byte) (int, error) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text.Write(b)
	text := p.text.String()
	if p.started.IsZero() && strings.HasPrefix(text, images.Started+"\n") {
		p.started = now
	}
	if p.ready.IsZero() && !p.started.IsZero() && strings.HasSuffix(text, "\n"+images.Ready+"\n") {
		p.ready = now
		close(p.isReady)
	}
	return len(b), nil
}
