package store

import (
	"cmp"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// WriteSpan writes the verified bytes of span i, and then publishes the span: Present and the reads
// of other callers see it from then on, the map on disk after the next flush. Parallel calls for
// one span are harmless. After an error the span is not present; the caller still holds the bytes
// and can serve them.
func (l *Layer) WriteSpan(i int, data []byte) error { return l.writeSpan(i, data, nil) }

// writeSpan is WriteSpan; for counted see PutAdmitted.
func (l *Layer) writeSpan(i int, data []byte, counted func()) error {
	spans, err := l.table()
	if err != nil {
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, err)
	}
	if uint(i) >= uint(min(len(spans), l.present.n)) || int64(len(data)) != spans[i].Size ||
		spans[i].Size > l.size-spans[i].Device {
		return fmt.Errorf("write span %d of layer %s: it does not have %d bytes, or there is none",
			i, l.digest, len(data))
	}
	off := spans[i].Device
	l.writing.RLock()
	defer l.writing.RUnlock()
	f, err := l.device.get()
	if err != nil {
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, err)
	}
	l.mu.Lock()
	epoch := l.epoch
	l.mu.Unlock()
	// The spans that a file has lost must not come back as zeros because it is made long again.
	if length, err := f.Size(); err != nil || length < l.Size() {
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, cmp.Or(err, ErrCut))
	}
	write := func() error {
		_, err := f.WriteAt(data, off)
		return err
	}
	if err := l.modify(f, write); err != nil {
		l.store.faults.note(err)
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, err)
	}
	// All before the span is published: whoever sees it sees that it is not durable.
	zeros := zerosIn(data, off)
	head, tail := edges(data, off)
	l.mu.Lock()
	if l.epoch != epoch {
		// A sync of the device failed meanwhile and may have dropped these bytes.
		l.mu.Unlock()
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, unix.EIO)
	}
	l.reads.touch(i, i+1)
	fresh := !l.present.has(i)
	if fresh {
		l.unsaved = append(l.unsaved, unsaved{i, off, int64(len(data)), head, tail})
		l.zeros.add(zeros)
		l.bytes += int64(len(data))
		l.dirty = true
	}
	l.present.add(i)
	last := fresh && l.present.full()
	if !l.store.faults.lately() {
		l.own.sure.add(i)
	}
	l.mu.Unlock()
	if fresh {
		if counted != nil {
			counted()
		}
		l.store.usage.add(l.space, int64(len(data)))
		l.store.changed(l, int64(len(data)))
	}
	if whole := l.known.Load().whole; last && whole != nil {
		whole()
	}
	return nil
}

// Put keeps the verified bytes of span i, so that Read returns them. False: it does not, and the
// caller serves them: the span is present, and could not be read, or, with an error, the disk does
// not take it.
func (l *Layer) Put(i int, data []byte) (bool, error) { return l.PutAdmitted(i, data, nil) }

// PutAdmitted is Put of bytes that somebody counts as used already: counted, unless nil, is called
// in the moment in which Store.Used counts them. It must not block.
func (l *Layer) PutAdmitted(i int, data []byte, counted func()) (bool, error) {
	if l.present.has(i) {
		// Writing it again might make a file long again that has lost its end, and turn the rest of
		// what it lost into zeros.
		if l.isSure(i) {
			return false, nil
		}
		gone := l.evictions.Load()
		if err := l.Repair(i, data); err != nil {
			l.log.Error("a span that is wrong on disk stays so", "span", i, "err", err)
			return false, nil
		}
		l.believe(i, gone)
		return false, nil
	}
	err := l.writeSpan(i, data, counted)
	if err != nil && l.lengthen() {
		err = l.writeSpan(i, data, counted)
	}
	return err == nil, err
}

// Repair writes the verified bytes of span i over wrong ones that are present, where the layer's
// spans cannot be evicted because it is sealed, and makes them durable. What is mounted over the
// device is right again from then on, but for what the kernel has in its page cache. It never makes
// the device longer than Size, nor leaves a hole behind its old end.
func (l *Layer) Repair(i int, data []byte) error {
	spans, err := l.table()
	if err != nil {
		return err
	}
	if uint(i) >= uint(len(spans)) || int64(len(data)) != spans[i].Size {
		return fmt.Errorf("repair layer %s: %d bytes are not span %d", l.digest, len(data), i)
	}
	off := spans[i].Device
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.gone {
		return fmt.Errorf("repair layer %s: %w", l.digest, os.ErrClosed)
	}
	f, err := l.device.get()
	if err != nil {
		return fmt.Errorf("repair layer %s: %w", l.digest, err)
	}
	length, err := f.Size()
	if err == nil && off > length {
		err = fmt.Errorf("span %d lies behind its %d bytes: %w", i, length, ErrCut)
	}
	if err == nil {
		err = l.modify(f, func() error {
			_, err := f.WriteAt(data, off)
			if err == nil && off+int64(len(data)) == l.size && length < l.Size() {
				err = f.Truncate(l.Size()) // the zeros behind the tar
			}
			return err
		})
	}
	if err == nil {
		if err = f.Sync(); err != nil {
			l.store.faults.note(err)
			l.revert() // the kernel says it once: flush would not hear of it
		}
	}
	if err != nil {
		return fmt.Errorf("repair layer %s: %w", l.digest, err)
	}
	return nil
}
