package pull

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// job is the bringing of one layer, for all pulls that want it.
type job struct {
	pull  *Pull
	layer digest.Digest
	done  chan struct{}
	err   error // valid when done is closed
}

// Bring waits until the store has the layer.
func (a *Pulls) Bring(ctx context.Context, r Request) error {
	p, err := a.Begin(r)
	if err != nil {
		return err
	}
	defer p.Leave()
	for {
		j := a.jobsOf(p, r)
		select {
		case <-j.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if j.err == nil || j.pull == p {
			if j.err != nil {
				p.inVain(r.Layer, j.err)
			}
			return j.err
		}
		// The layer failed for another image, whose registry may lack it or
		// refuse it. Ours may not.
	}
}

// jobsOf returns the job for a layer, and sees to those of the layers above it.
func (a *Pulls) jobsOf(p *Pull, r Request) *job {
	j := a.job(p, r.Layer)
	for _, d := range r.Above {
		a.job(p, d)
	}
	return j
}

// job returns the job for a layer, started by p if nobody has, or only for an image that nobody has
// asked for.
func (a *Pulls) job(p *Pull, d digest.Digest) *job {
	a.mu.Lock()
	j := a.jobs[d]
	if j != nil && (j.pull.askedLocked() || !p.askedLocked()) {
		a.mu.Unlock()
		return j
	}
	j = &job{pull: p, layer: d, done: make(chan struct{})}
	a.jobs[d] = j
	p.jobs = append(p.jobs, j)
	a.mu.Unlock()
	end := func(err error) {
		j.err = err
		if err != nil {
			a.forget(p) // before anybody is told, who may try again at once
		}
		a.mu.Lock()
		if a.jobs[d] == j {
			delete(a.jobs, d)
		}
		a.mu.Unlock()
		close(j.done)
	}
	if !a.host.Go(func(ctx context.Context) { end(p.try(ctx, d)) }) {
		end(errors.New("micad is stopping"))
	}
	return j
}

// try is prepare; a panic fails the layer, and nothing else.
func (p *Pull) try(ctx context.Context, d digest.Digest) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p.all.host.Panicked(v)
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return p.prepare(ctx, d)
}

// prepare brings a layer and mounts it, before containerd asks for it.
func (p *Pull) prepare(ctx context.Context, d digest.Digest) error {
	start := time.Now()
	release := func() {}
	defer func() { release() }()
	// From its index to its mount a layer waits for cores alone, and a container for the layer.
	// Replays have begun by then.
	if err := p.bring(d, func() { release = p.all.o.Budget.FreeCores() }); err != nil {
		return err
	}
	select {
	case <-p.asked:
	default:
		release()
		release = func() {}
		if err := p.awaitAsked(); err != nil {
			return err
		}
		release = p.all.o.Budget.FreeCores()
	}
	brought := time.Now()
	err := p.all.host.Show(ctx, p.name(), d, p.isLowest(d))
	p.all.o.Log.DebugContext(ctx, "layer prepared", "ref", p.name(), "layer", d,
		"bring", brought.Sub(start), "mount", time.Since(brought), "err", err)
	return err
}
