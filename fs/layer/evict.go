package layer

import "context"

// Evict takes spans out of the store, and returns how many bytes of the device that was. They are
// fetched again when somebody reads them.
func (l *Layer) Evict(spans []int) (int64, error) {
	l.noteCome()
	return l.store.Evict(spans)
}

// Empty takes all spans out of the store at once, by a new device.
func (l *Layer) Empty() error {
	l.noteCome()
	return l.store.Empty()
}

// Fresh is ReadAt for bytes that the store has, and that are to come from the source all the same.
func (l *Layer) Fresh(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := l.check(off, n); err != nil {
		return err
	}
	return l.fetch(ctx, want{p: p, off: off, end: off + n, bypass: true})
}
