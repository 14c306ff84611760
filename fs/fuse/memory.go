package fuse

import (
	"context"
	"fmt"
	"math/bits"
	"sync"

	"golang.org/x/sync/semaphore"
)

// DefaultMemory is the bound that NewMemory(0) sets: 32 requests of the largest
// size.
const DefaultMemory = 32 << 20

// maxRead is the largest read request, bytes: what the kernel allows without
// raising fs.fuse.max_pages_limit.
const maxRead = 1 << 20

// Memory lends the buffers into which reads are answered, and bounds their
// bytes: of one mount, or of all mounts that are given the same Memory. Safe
// for parallel use.
//
// A read takes its buffer only when its data are at hand if the Device is a
// Filler: reads that wait for a slow registry then hold nothing, and cannot
// keep others from what is already there.
type Memory struct {
	bytes *semaphore.Weighted
	pools [classes]sync.Pool // of *buffer, by size

	replies sync.Pool // of *[]byte, replySize long: answers to metadata requests
}

// Buffers come in powers of two from a page to maxRead.
const (
	minClass = 12 // 4 KiB
	maxClass = 20 // 1 MiB
	classes  = maxClass - minClass + 1
)

// NewMemory returns a Memory that lends at most limit bytes at a time; 0:
// DefaultMemory. Less than one request of the largest size is raised to that.
func NewMemory(limit int64) *Memory {
	if limit == 0 {
		limit = DefaultMemory
	}
	return &Memory{bytes: semaphore.NewWeighted(max(limit, maxRead))}
}

// acquire returns a buffer of n bytes, 0 < n ≤ maxRead, aligned to pages; it waits
// until so much is free. The caller gives it back with release.
func (m *Memory) acquire(ctx context.Context, n int) (*buffer, error) {
	if n <= 0 || n > maxRead {
		return nil, fmt.Errorf("read buffer of %d bytes", n)
	}
	class := max(bits.Len(uint(n-1)), minClass)
	if err := m.bytes.Acquire(ctx, 1<<class); err != nil {
		return nil, fmt.Errorf("wait for a read buffer: %w", err)
	}
	b, _ := m.pools[class-minClass].Get().(*buffer)
	if b == nil {
		// A slice of a power of two from a page on is aligned to pages in
		// Go's heap, which spares the store's pread split pages.
		b = &buffer{data: make([]byte, 1<<class), class: class}
	}
	b.n = n
	return b, nil
}

func (m *Memory) release(b *buffer) {
	m.pools[b.class-minClass].Put(b)
	m.bytes.Release(1 << b.class)
}

// buffer is a lent buffer of n bytes.
type buffer struct {
	data  []byte
	n     int
	class int // log2(len(data))
}

func (b *buffer) bytes() []byte { return b.data[:b.n] }

// reply returns a buffer of size bytes for the answer to a metadata request.
// These are short-lived, small but for directory listings, and never
// held while waiting: they are not counted.
func (m *Memory) reply(size int) *[]byte {
	if size > replySize {
		b := make([]byte, size)
		return &b
	}
	if b, ok := m.replies.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, replySize)
	return &b
}

func (m *Memory) releaseReply(b *[]byte) {
	if len(*b) == replySize {
		m.replies.Put(b)
	}
}
