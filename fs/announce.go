package fs

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// maxAnnounced bounds the images that are announced and not asked for.
const maxAnnounced = 8

// Announce says that containerd is pulling an image of these layers, and is soon going to ask for them, if it is for Mica: the image's index
// is looked for, and what its start reads first is on its way when containerd asks. ref is the image's repository, with or without more.
//
// An image that nobody asks for within half a minute costs no more than that: nothing of it is downloaded whole, replayed or mounted before,
// and what came is given up. Images are not announced to any effect after that, until one is asked for.
func (t *Table) Announce(ref string, manifest digest.Digest, layers []digest.Digest) error {
	if t.o.Mode == Local || t.o.LocalIndexes || !t.lacks(layers) {
		return nil
	}
	if !t.listens() {
		return nil
	}
	p, err := t.join(ref, manifest)
	if err != nil {
		return err
	}
	defer t.leave(p)
	t.mu.Lock()
	p.lowest = layers[0] // lacks has found one
	t.mu.Unlock()
	for _, d := range layers {
		t.job(p, d)
	}
	return nil
}

// listens says whether announcements are worth something.
func (t *Table) listens() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.deaf || t.closed {
		return false
	}
	n := 0
	for _, p := range t.pulls {
		if !p.askedLocked() {
			n++
		}
	}
	return n < maxAnnounced
}

// lacks says whether a layer is not here.
func (t *Table) lacks(layers []digest.Digest) bool {
	for _, d := range layers {
		l, err := t.store.Layer(d)
		if err != nil {
			return d.Validate() == nil
		}
		l.Close()
	}
	return false
}

// heed has an image that was announced count as asked for, now that one of its layers is.
func (t *Table) heed(l Layer, below []Below) {
	t.mu.Lock()
	p := t.pulls[keyOf(l.Ref, l.Manifest)]
	if p != nil && p.idle != nil {
		p.idle.Reset(pullIdle)
	}
	t.mu.Unlock()
	if p != nil && p.ask(l, below) {
		t.record(l, below)
	}
}

// ask notes that containerd has asked for a layer of the pull's image, by a reference. It says whether that was the first time.
func (p *pull) ask(l Layer, below []Below) bool {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	p.t.deaf = false
	if len(below) == 0 {
		p.lowest = l.Digest
	}
	if p.askedLocked() {
		return false
	}
	p.ref, p.layers = l.Ref, imageOf(l, below)
	close(p.asked)
	return true
}

// isLowest says whether a layer is the image's first, as far as that is known.
func (p *pull) isLowest(d digest.Digest) bool {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	return p.lowest == d
}

func (p *pull) askedLocked() bool {
	select {
	case <-p.asked:
		return true
	default:
		return false
	}
}

// awaitAsked returns when containerd has asked for a layer of the image. An error says that it will not.
func (p *pull) awaitAsked() error {
	select {
	case <-p.asked:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// whenAsked has do done at once if containerd has asked for a layer of the image, and else when it does.
func (p *pull) whenAsked(do func()) {
	select {
	case <-p.asked:
		do()
	default:
		p.t.goes(func(context.Context) {
			if p.awaitAsked() == nil {
				do()
			}
		})
	}
}

// name is the reference by which the image is pulled, as far as it is known.
func (p *pull) name() string {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	return p.ref
}
