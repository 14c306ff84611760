package store

import "sync"

const (
	// chunkShift is log2 of a chunk, the unit in which the store knows what the
	// page cache holds of a device: 256 KiB.
	chunkShift = 18
	// maxChunks bounds that knowledge to 1 MiB a layer: devices of more than
	// 256 GiB get larger chunks.
	maxChunks = 1 << 20
)

// chunk is what the store knows of one piece of a device: its temperature, and
// whether its bytes are in a reader's hands.
type chunk uint8

// The temperatures. They rise by a write and fall in the order from dirty to
// cold.
const (
	cold        chunk = iota // not in the page cache, as far as the store knows
	tepid                    // durable, in the page cache since before the last aging
	warm                     // durable, in the page cache
	syncing                  // being made durable, or in doubt since that failed
	dirty                    // written since the last sync began
	temperature chunk = 7

	// used says that a large read has had the chunk, and that whoever read it
	// has its own copy in the page cache: EROFS and FUSE keep one. Ours is only
	// of use to somebody else.
	used chunk = 8
)

// pages is what the store knows of a device's pages in the page cache. It
// decides how a read is done, never what is read: where it is wrong, a read is
// slower, and pages are kept that nobody needs or read again that somebody does.
type pages struct {
	shift uint // log2 of the bytes of a chunk

	mu     sync.Mutex // never held over disk access
	chunks []chunk
}

func newPages(size int64) *pages {
	p := &pages{shift: chunkShift}
	for (size-1)>>p.shift >= maxChunks {
		p.shift++
	}
	p.chunks = make([]chunk, (size+1<<p.shift-1)>>p.shift)
	return p
}

// reset notes that the file is a new one, of which nothing was written yet.
func (p *pages) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.chunks)
}

// eachLocked replaces the chunks that hold any of the n bytes from off on, as far as
// there are any.
func (p *pages) eachLocked(off, n int64, f func(chunk) chunk) {
	if off < 0 || n <= 0 {
		return
	}
	end := int64(len(p.chunks))
	for i := off >> p.shift; i < end && i<<p.shift-off < n; i++ {
		p.chunks[i] = f(p.chunks[i])
	}
}

// wrote notes that the bytes were written to the file, and are not durable.
func (p *pages) wrote(off, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eachLocked(off, n, func(c chunk) chunk { return c&used | dirty })
}

// cold says whether nothing of the range is known to be in the page cache, so that
// reading it from disk costs nothing more, and nothing has to be written before.
func (p *pages) cold(off, n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := true
	p.eachLocked(off, n, func(c chunk) chunk {
		all = all && c&temperature == cold
		return c
	})
	return all
}

// read notes that the range was read through the page cache.
func (p *pages) read(off, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eachLocked(off, n, func(c chunk) chunk {
		if c&temperature == cold {
			c = warm
		}
		return c
	})
}

// served notes that somebody has got the range who keeps it; it may be cold, and
// about to be written. It returns how many bytes can be dropped now that could not
// before.
func (p *pages) served(off, n int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var fresh int64
	p.eachLocked(off, n, func(c chunk) chunk {
		if t := c & temperature; c&used == 0 && (t == warm || t == tepid) {
			fresh++
		}
		return c | used
	})
	return fresh << p.shift
}

// beginSync notes that all that was written up to now is being synced.
func (p *pages) beginSync() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replaceLocked(dirty, syncing)
}

// endSync notes that what was written up to the last beginSync is durable.
func (p *pages) endSync() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replaceLocked(syncing, warm)
}

func (p *pages) replaceLocked(from, to chunk) {
	for i, c := range p.chunks {
		if c&temperature == from {
			p.chunks[i] = c&used | to
		}
	}
}

// extent is n bytes from off on.
type extent struct{ off, n int64 }

// takeUsed makes the durable chunks cold that a reader has its own copy of, and
// returns where they are: the caller drops them from the page cache.
func (p *pages) takeUsed() []extent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.takeLocked(func(c chunk) bool { return c&used != 0 })
}

// takeOld is takeUsed for the chunks that have been durable since before the last
// takeOld as well. more: there are younger ones.
func (p *pages) takeOld() (old []extent, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old = p.takeLocked(func(c chunk) bool { return c&used != 0 || c&temperature == tepid })
	p.replaceLocked(warm, tepid)
	for _, c := range p.chunks {
		more = more || c&temperature != cold
	}
	return old, more
}

func (p *pages) takeLocked(which func(chunk) bool) []extent {
	var all []extent
	for i, c := range p.chunks {
		if t := c & temperature; t != tepid && t != warm || !which(c) {
			continue
		}
		p.chunks[i] = cold
		off := int64(i) << p.shift
		if k := len(all) - 1; k >= 0 && all[k].off+all[k].n == off {
			all[k].n += 1 << p.shift
		} else {
			all = append(all, extent{off, 1 << p.shift})
		}
	}
	return all
}
