package store

import (
	"fmt"
	"slices"
)

// maxVouchers bounds Record.Vouchers.
const maxVouchers = 64

// Vouch notes that the index in the folder is also what another repository has for the layer. It
// has no effect where nobody need vouch for it.
func (l *Layer) Vouch(repository string) error {
	return l.change(func(r *Record) bool {
		if len(r.Vouchers) == 0 || slices.Contains(r.Vouchers, repository) {
			return false
		}
		r.Vouchers = append(r.Vouchers, repository)
		r.Vouchers = slices.Delete(r.Vouchers, 0, max(len(r.Vouchers)-maxVouchers, 0))
		return true
	})
}

// Proved notes that the index is that of the layer's own tar: nobody need vouch for it any more.
// forged says that it has taken the place of another.
func (l *Layer) Proved(forged bool) error {
	return l.change(func(r *Record) bool {
		changed := len(r.Vouchers) > 0 || forged && !r.Forged
		r.Vouchers, r.Forged = nil, r.Forged || forged
		return changed
	})
}

// Disproved notes that the layer's bytes are not those of its diffID, although each span is what
// the index says: the index is forged, and the Vouchers have vouched for it.
func (l *Layer) Disproved() error {
	return l.change(func(r *Record) bool {
		changed := !r.Disproved
		r.Disproved = true
		return changed
	})
}

// change changes the record, durably. f says whether it did.
func (l *Layer) change(f func(*Record) bool) error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	l.mu.Lock()
	changed := f(&l.record)
	rec := l.record.clone()
	l.mu.Unlock()
	if !changed || l.gone {
		return nil
	}
	rec.State = l.recorded
	if err := l.writeRecord(&rec); err != nil {
		return fmt.Errorf("record of layer %s: %w", l.digest, err)
	}
	return nil
}

// AddRef notes that an image reference brought the layer, so that a later run
// knows where to fetch from.
func (l *Layer) AddRef(ref string) error {
	return l.change(func(r *Record) bool { return r.addRef(ref) })
}
