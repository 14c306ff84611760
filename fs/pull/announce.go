package pull

import (
	"github.com/opencontainers/go-digest"
)

// maxAnnounced bounds the images that are announced and not asked for.
const maxAnnounced = 8

// Announce says that containerd is pulling an image of these layers, and is soon going to ask for
// them, if it is for Mica: the image's index is looked for, and what its start reads first is on
// its way when containerd asks. ref is the image's repository, with or without more.
//
// An image that nobody asks for within half a minute costs no more than that: nothing of it is
// downloaded whole, replayed or mounted before, and what came is given up. Images are not announced
// to any effect after that, until one is asked for.
func (a *Pulls) Announce(ref string, manifest digest.Digest, layers []digest.Digest) error {
	if a.o.Whole || !a.lacks(layers) || !a.listens() {
		return nil
	}
	p, err := a.join(ref, manifest)
	if err != nil {
		return err
	}
	defer p.Leave()
	a.mu.Lock()
	p.lowest = layers[0] // lacks has found one
	a.mu.Unlock()
	for _, d := range layers {
		a.job(p, d)
	}
	return nil
}

// listens says whether announcements are worth something.
func (a *Pulls) listens() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ignoring || a.ctx.Err() != nil {
		return false
	}
	n := 0
	for _, p := range a.under {
		if !p.askedLocked() {
			n++
		}
	}
	return n < maxAnnounced
}

// lacks says whether a layer is not here.
func (a *Pulls) lacks(layers []digest.Digest) bool {
	for _, d := range layers {
		l, err := a.o.Store.Layer(d)
		if err != nil {
			return d.Validate() == nil
		}
		l.Close()
	}
	return false
}

// Heed has an image that was announced count as asked for, now that one of its layers is.
func (a *Pulls) Heed(r Request) {
	a.mu.Lock()
	p := a.under[keyOf(r.Ref, r.Manifest)]
	if p != nil && p.idle != nil {
		p.idle.Reset(pullIdle)
	}
	a.mu.Unlock()
	if p != nil {
		p.ask(r)
	}
}
