package store

import (
	"sync"
	"sync/atomic"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// own is what this process knows of its own writing to the device, and so of what others may have
// done to it: a file's change time moves with every write to it, and after each of ours its value
// is noted. It finds a device that was tampered with, or that a faulty disk's repair has rewritten;
// it does not find what a disk changes silently, which only reading against the digests does.
type own struct {
	sure   *set          // spans that this process wrote, or compared with their digests
	faults atomic.Uint64 // the store's count of faults when they were

	mu    sync.Mutex    // held while this process changes the file
	seq   atomic.Uint64 // odd while it does
	stamp atomic.Int64  // the file's change time after that; 0: not looked at yet
}

// modify runs fn, which changes the device f.
func (l *Layer) modify(f files.File, fn func() error) error {
	o := &l.own
	o.mu.Lock()
	defer o.mu.Unlock()
	l.compareLocked(f)
	o.seq.Add(1)
	defer o.seq.Add(1)
	err := fn()
	if now, serr := f.Stamp(); serr == nil {
		o.stamp.Store(now)
	}
	return err
}

// compareLocked looks whether somebody else changed the device; then nothing is sure of what it
// holds.
func (l *Layer) compareLocked(f files.File) bool {
	now, err := f.Stamp()
	if err != nil {
		return false
	}
	switch l.own.stamp.Load() {
	case now:
		return true
	case 0:
		l.own.stamp.Store(now)
		return true
	}
	l.mu.Lock()
	l.own.sure.restore(nil)
	l.evictions.Add(1)
	l.mu.Unlock()
	// Last: who finds it unchanged from here on finds, after that, that there was an eviction.
	l.own.stamp.Store(now)
	l.log.Warn("somebody else has changed the layer's device: what is read of it is compared with its digests")
	return false
}

// unchanged says whether the device is as this process left it, as far as that can be told while it
// is writing to it. If it is not, no span is sure any more, and evictions has changed: what was
// read lately may be wrong.
func (l *Layer) unchanged() bool {
	if l.afterFault() {
		return false
	}
	f, err := l.device.get()
	if err != nil {
		return true // reads say so
	}
	o := &l.own
	seq := o.seq.Load()
	if seq&1 != 0 {
		return true
	}
	now, err := f.Stamp()
	if err != nil || o.stamp.Load() == now || o.seq.Load() != seq {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return l.compareLocked(f)
}
