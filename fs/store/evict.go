package store

import (
	"errors"
	"fmt"
	"os"

	"github.com/mica-snapshotter/mica/index"
)

// punchAlign is the unit in which file systems give space back: a block, of nearly all.
const punchAlign = 4096

// ErrSealed is wrapped by errors about spans that cannot go one by one, because the kernel may read
// the device without asking the store, and would read zeros: the layer is Verified, or has been.
// See Empty.
var ErrSealed = errors.New("the kernel may read the device by itself")

// Evict takes spans away, for good when it returns: they are not present, in memory and on disk,
// before the first byte of them goes. It returns how many bytes that were. Spans that are not
// present are left out; one that somebody writes anew meanwhile stays. The error wraps ErrSealed
// where spans cannot go one by one.
func (l *Layer) Evict(spans []int) (int64, error) {
	at, err := l.table()
	if err != nil {
		return 0, fmt.Errorf("evict spans of layer %s: %w", l.digest, err)
	}
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if l.gone {
		return 0, nil
	}
	taken, bytes, err := l.take(spans, at)
	if err == nil && len(taken) > 0 {
		if err = l.unrecord(taken, at); err == nil {
			err = l.punch(taken, at)
			l.Measure()
		} else {
			l.giveBack(taken, at)
			bytes = 0
		}
	}
	if err != nil {
		return bytes, fmt.Errorf("evict spans of layer %s: %w", l.digest, err)
	}
	return bytes, nil
}

// take makes spans absent in memory, and returns those that were present.
func (l *Layer) take(spans []int, at index.Spans) (taken []int, bytes int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sealedLocked() {
		return nil, 0, ErrSealed
	}
	for _, i := range spans {
		if uint(i) >= uint(len(at)) {
			return taken, bytes, fmt.Errorf("span %d of %d", i, len(at))
		}
		if l.present.remove(i) {
			taken = append(taken, i)
			bytes += at[i].Size
			l.bytes -= at[i].Size
		}
	}
	if len(taken) > 0 {
		l.record.State = Lazy
		// After the bits: who sees the new number sees that the spans are gone.
		l.evictions.Add(1)
	}
	return taken, bytes, nil
}

// giveBack makes spans present again whose bytes are all there.
func (l *Layer) giveBack(taken []int, at index.Spans) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range taken {
		if l.present.add(i) {
			l.bytes += at[i].Size
		}
	}
	l.dirty = true
}

// unrecord makes the disk forget the spans: in both slots of the map, since a torn write brings
// back the older one. A layer that was recorded as complete is recorded as lazy after that.
func (l *Layer) unrecord(taken []int, at index.Spans) error {
	bits := make([]uint64, words(l.present.n))
	copy(bits, l.durable)
	bytes, known := l.durableN, false
	for _, i := range taken {
		if bit := uint64(1) << (i & 63); bits[i>>6]&bit != 0 {
			bits[i>>6] &^= bit
			bytes -= at[i].Size
			known = true
		}
	}
	if !known {
		return nil
	}
	m := l.record.mapping()
	for range 2 {
		p := &presence{generation: l.generation + 1, bytes: bytes, bits: bits}
		if err := l.store.storePresence(l.dir, m, p); err != nil {
			return err
		}
		l.generation = p.generation
		l.mu.Lock()
		l.markDurable(bits, bytes)
		l.mu.Unlock()
	}
	if l.recorded == Lazy {
		return nil
	}
	rec := l.Record()
	rec.State = Lazy
	if err := l.writeRecord(&rec); err != nil {
		return err
	}
	l.recorded = Lazy
	return nil
}

// punch frees the space of spans that are not present.
func (l *Layer) punch(taken []int, at index.Spans) error {
	f, err := l.device.get()
	if err != nil {
		return err
	}
	// Nobody writes meanwhile: what has been written anew stays, and what lies beside the spans in
	// their first and last block is either present or nothing.
	l.writing.Lock()
	defer l.writing.Unlock()
	for k := 0; k < len(taken); {
		if l.present.has(taken[k]) {
			k++
			continue
		}
		first := taken[k]
		last := first
		for k++; k < len(taken) && taken[k] == last+1 && !l.present.has(taken[k]); k++ {
			last++
		}
		from, to := l.absent(first, last, at)
		if err := l.modify(f, func() error { return f.PunchHole(from, to-from) }); err != nil {
			return err
		}
	}
	return nil
}

// absent returns the range of spans first to last with as much of its first and last block as is
// not present either.
func (l *Layer) absent(first, last int, at index.Spans) (from, to int64) {
	from, to = at[first].Device, at[last].Device+at[last].Size
	low, high := from/punchAlign*punchAlign, (to+punchAlign-1)/punchAlign*punchAlign
	for i := first - 1; i >= 0 && from > low && !l.present.has(i); i-- {
		from = max(at[i].Device, low)
	}
	for i := last + 1; i < l.present.n && to < high && !l.present.has(i); i++ {
		to = min(at[i].Device+at[i].Size, high)
	}
	if to == l.size {
		to = l.Size()
	}
	return from, to
}

// Empty takes all spans away at once, those of a sealed layer too: the layer gets a new device
// without content. Who has the old one mounted keeps it whole; its space is free when the last of
// them has gone. From the call on nothing that was mounted over DevicePath shows this layer's
// device any more.
func (l *Layer) Empty() error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if l.gone {
		return nil
	}
	defer l.Measure()
	// What is written from now on goes to the new device.
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	bits, bytes, written := l.present.snapshot(), l.bytes, l.unsaved
	l.present.restore(nil)
	l.own.sure.restore(nil)
	l.own.stamp.Store(0)
	l.bytes, l.dirty, l.unsaved = 0, false, nil
	l.record.State = Lazy
	l.markDurable(nil, 0)
	l.evictions.Add(1)
	l.mu.Unlock()
	replaced, err := l.renew()
	if !replaced {
		l.mu.Lock()
		l.present.restore(bits)
		l.bytes, l.dirty, l.record.State = bytes, true, l.recorded
		l.unsaved = append(written, l.unsaved...)
		l.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("empty layer %s: %w", l.digest, err)
	}
	return nil
}

// renew replaces the device by a new one without content. The order matters: nothing on disk may
// call a span present when the device has its length, for from then on missing bytes read as zeros.
// The old file is never touched: the kernel may have it mounted. Not replaced: the layer still has
// it.
func (l *Layer) renew() (replaced bool, err error) {
	d := l.store.disk
	if l.recorded != Lazy {
		rec := l.Record()
		rec.State = Lazy
		if err := l.writeRecord(&rec); err != nil {
			return false, err
		}
		l.recorded = Lazy
	}
	if err := d.RemoveAll(l.dir + "/" + presentName); err != nil {
		return false, err
	}
	if err := d.SyncDir(l.dir); err != nil {
		return false, err
	}
	tmp := temporary(l.dir, deviceName)
	if err := makeDevice(d, tmp, l.Size()); err != nil {
		return false, err
	}
	if err := d.Rename(tmp, l.dir+"/"+deviceName); err != nil {
		return false, err
	}
	l.mu.Lock()
	l.sealed = false
	l.mu.Unlock()
	l.own.stamp.Store(0)
	// Reads that have begun end; later ones open the new file.
	return true, errors.Join(l.device.close(), l.direct.close(), d.SyncDir(l.dir))
}

// SetAside takes the index away from the layer, which is of no use then to whoever opens it next:
// it is wrong. Who has it open keeps it.
func (l *Layer) SetAside() error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if l.gone {
		return nil
	}
	if err := l.store.disk.RemoveAll(l.IndexPath() + damagedSuffix); err != nil {
		return fmt.Errorf("set the index of layer %s aside: %w", l.digest, err)
	}
	err := l.store.disk.Rename(l.IndexPath(), l.IndexPath()+damagedSuffix)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set the index of layer %s aside: %w", l.digest, err)
	}
	return nil
}

// damagedSuffix is added to the name of an index that is of no use.
const damagedSuffix = ".damaged"

// Sealed says whether the layer goes as a whole or not at all.
func (l *Layer) Sealed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sealedLocked()
}

func (l *Layer) sealedLocked() bool { return l.sealed || l.record.State == Verified }

// seal marks the device as one that the kernel may read by itself: not one span of it is ever taken
// away. The mark is on the file, so that it holds for whoever opens the layer next while the kernel
// still reads it; it need not survive a power cut, which no mount does.
func (l *Layer) seal() error {
	l.mu.Lock()
	sealed := l.sealed
	l.sealed = true
	l.mu.Unlock()
	if sealed {
		return nil
	}
	f, err := l.device.get()
	if err == nil {
		err = l.modify(f, f.Seal)
	}
	if err != nil {
		l.mu.Lock()
		l.sealed = false // the next attempt seals it
		l.mu.Unlock()
	}
	return err
}
