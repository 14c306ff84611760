package store

import (
	"encoding/binary"
	"errors"
	"os"
	"sync/atomic"
	"time"
)

// readsName is the file in a layer's folder that says when its spans were read last. It is a hint:
// it is written now and then and not synced, and a layer without one, or with a damaged one, counts
// as read when it is opened.
//
// Little-endian:
//
//	offset  bytes
//	     0      8  "MicaRead"
//	     8      4  version, 1
//	    12      4  CRC-32C of the file, this field taken as zero
//	    16      4  when a container used the layer last, seconds since 1970
//	    20      4  when its content was checked last, seconds since 1970
//	    24      8  number of spans
//	    32    4·n  for each span, when it was read last, seconds since 1970; 0: not known
const (
	readsName    = "reads"
	readsMagic   = "MicaRead"
	readsVersion = 1
	readsHeader  = 32
)

// reads is when the spans of a layer were read last, by the second. The arrival of a span counts as
// a read.
type reads struct {
	now     func() time.Time // nil: time.Now
	used    atomic.Uint32
	checked atomic.Uint32
	spans   []atomic.Uint32
	changed atomic.Bool // since the file was written
}

func (r *reads) second() uint32 {
	now := time.Now
	if r.now != nil {
		now = r.now
	}
	return uint32(now().Unix())
}

// touch notes that spans [first, last) are read now. It takes some nanoseconds a span, and writes
// memory once a second.
func (r *reads) touch(first, last int) {
	m := r.second()
	for i := max(first, 0); i < min(last, len(r.spans)); i++ {
		if r.spans[i].Load() != m {
			r.spans[i].Store(m)
			r.changed.Store(true)
		}
	}
}

// loadReads reads what an earlier run has left.
func (l *Layer) loadReads() {
	r, n := &l.reads, l.present.n
	r.spans = make([]atomic.Uint32, n)
	if b, err := readFile(l.store.disk, l.dir+"/"+readsName, readsHeader+4*int64(n)); err == nil && r.decode(b) == nil {
		return
	}
	r.used.Store(r.second())
	r.checked.Store(r.second())
	r.touch(0, n)
	r.changed.Store(false)
}

func (r *reads) encode() []byte {
	b := make([]byte, readsHeader+4*len(r.spans))
	le := binary.LittleEndian
	copy(b, readsMagic)
	le.PutUint32(b[8:], readsVersion)
	le.PutUint32(b[16:], r.used.Load())
	le.PutUint32(b[20:], r.checked.Load())
	le.PutUint64(b[24:], uint64(len(r.spans)))
	for i := range r.spans {
		le.PutUint32(b[readsHeader+4*i:], r.spans[i].Load())
	}
	le.PutUint32(b[12:], checksum(b))
	return b
}

var errReads = errors.New("not a usable record of reads")

// decode takes over what encode made for as many spans as r has.
func (r *reads) decode(b []byte) error {
	le := binary.LittleEndian
	if len(b) != readsHeader+4*len(r.spans) || string(b[:8]) != readsMagic ||
		le.Uint32(b[8:]) != readsVersion || le.Uint64(b[24:]) != uint64(len(r.spans)) ||
		checksum(b) != le.Uint32(b[12:]) {
		return errReads
	}
	// A clock that was wrong must not keep spans for ever.
	now := r.second()
	r.used.Store(min(le.Uint32(b[16:]), now))
	r.checked.Store(min(le.Uint32(b[20:]), now))
	for i := range r.spans {
		r.spans[i].Store(min(le.Uint32(b[readsHeader+4*i:]), now))
	}
	return nil
}

// Touched notes that a reader asks for spans [first, last).
func (l *Layer) Touched(first, last int) { l.reads.touch(first, last) }

// LastRead returns when span i was read last, or came, by the second.
func (l *Layer) LastRead(i int) time.Time { return seconds(l.reads.spans[i].Load()) }

func seconds(s uint32) time.Time { return time.Unix(int64(s), 0) }

// Used notes that a container uses the layer now, read by read or without the store. LastUsed
// returns when that was last.
func (l *Layer) Used() { l.reads.note(&l.reads.used) }

// LastUsed is described at Used.
func (l *Layer) LastUsed() time.Time { return seconds(l.reads.used.Load()) }

// Checked notes that all that is present has been read and compared with its digests. LastChecked
// returns when that was last.
func (l *Layer) Checked() { l.reads.note(&l.reads.checked) }

// LastChecked is described at Checked.
func (l *Layer) LastChecked() time.Time { return seconds(l.reads.checked.Load()) }

func (r *reads) note(field *atomic.Uint32) {
	if m := r.second(); field.Swap(m) != m {
		r.changed.Store(true)
	}
}

// SaveReads writes what LastRead, LastUsed and LastChecked return for the next run. Nothing depends
// on it, so that an error is only logged.
func (l *Layer) SaveReads() {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if l.gone || !l.reads.changed.Swap(false) {
		return
	}
	if err := l.writeReads(); err != nil {
		l.log.Debug("last reads are not saved", "err", err)
	}
}

func (l *Layer) writeReads() error {
	d, tmp := l.store.disk, l.dir+"/"+readsName+".tmp"
	f, err := d.Open(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(l.reads.encode(), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, d.RemoveAll(tmp))
	}
	return d.Rename(tmp, l.dir+"/"+readsName)
}
