// Package store keeps a node's layers on disk, below one root directory.
//
// # On disk
//
//	reserve-0 to reserve-7      space for records when the disk is full
//	lock                        held by the process that has the store open
//	layers/<algorithm>/<hex>/   one layer, named by the digest of its blob:
//	    index                   the local index file, written once
//	    windows                 the layer's windows section; only where the layer was indexed here
//	    device                  the uncompressed tar, sparse, its length rounded up to 512
//	    present                 the presence map: which spans of the device are there
//	    layer.json              Record, with a version
//	    reads                   when spans were read last: a hint for eviction
//	tmp/                        folders on their way in (in-*) and out (rm-*); emptied by Open
//
// A layer appears by the rename of a whole folder out of tmp and goes by the
// rename into it, so there is never half a layer under layers.
//
// # Presence
//
// A span is written to the device whole, then published in memory; reads see it
// at once. A flush (see Run) syncs the device and only then writes the map that
// calls the span present. So after a power cut nothing is present that is not
// whole, and no read waits for a sync. When a layer is complete, its record
// says so and the map no longer matters.
//
// The map is two slots, each of whole 4 KiB pages; a flush writes the one that
// holds the older generation. A torn write costs that slot, never the other. A
// slot, little-endian:
//
//	offset  bytes
//	     0      8  "MicaPres"
//	     8      4  version, 1
//	    12      4  CRC-32C of the slot up to its padding's end, this field taken as zero
//	    16      8  generation; the greater one counts, its lowest bit is the slot's number
//	    24     32  sha256 of: layer digest, zero byte, diffID
//	    56      8  size of the device, bytes
//	    64      8  number of spans
//	    72      8  sum of the sizes of the present spans, bytes
//	    80      8  zero
//	    88    8·w  w = ⌈spans/64⌉ words; bit i&63 of word i>>6: span i is present
//	            …  zeros up to a multiple of 4096
//
// A map that is short, damaged or of another layer counts as empty. The older
// slot stays usable because bits are only added; Evict, which takes spans away,
// writes both slots before it frees the first byte.
//
// # Going
//
// A span that is evicted becomes a hole, and a hole reads as zeros. So it is first not present in
// memory, then in both slots on disk, and then a hole; and Read notices where it has looked before
// and read after. A reader that does not ask, the kernel, may have the device of a
// Verified layer mounted, for as long as a container runs, whatever becomes of micad. So before a
// layer is Verified its device is sealed, by a mode bit of the file, and of a sealed device nothing
// is ever taken away. Such a layer goes as a whole: it gets another device file, and the old one is
// the kernel's until the last mount of it ends (Empty).
//
// # What others do to it
//
// What lies on a disk can be changed while nobody looks. A span is sure when this process wrote it,
// or compared it with its digest; after a start none is. A change of a device by others moves its
// change time, which is compared at each read: then no span is sure any more. That is a check
// against accidents, not against whoever may write below the root directory: a change at the very
// moment at which this process writes passes for its own, and what the kernel reads by itself is
// not compared at all.
//
// So Read returns bytes that are sure, or that it has just compared, and gives up what the disk has
// changed or lost: it says that a span is missing, and nobody else asks whether bytes on disk may
// be believed. Know tells the digests, and whom to call at
// the last span.
//
//	Read ─┬─ some span not present ──────────────▶ ErrMissing
//	      └─ makeSure ─▶ device ─┬─ settled ─────▶ the bytes
//	                             └─ zeros, or not sure: readCompared ─┬─▶ the bytes
//	                                                                  └─▶ lose ─▶ ErrMissing, or
//	                                                                      ErrUnreadable: it stays
//
// # Page cache
//
// The readers of a device keep what they read: EROFS and FUSE have the bytes in the page cache as
// their own files' pages, and the device's pages are a second copy. So large reads go past the page
// cache (O_DIRECT), unless the layer is warm: it was written to lately, and may be in the page
// cache, from where it is read then, and dropped within a minute. Small reads go through the page
// cache because they need its readahead.
//
// # Concurrency
//
// All methods of Store and Layer may run in parallel. Presence is read without
// locks. One process at a time has a store open.
package store

import (
	"crypto/rand"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

const (
	layersName = "layers"
	tmpName    = "tmp"
	lockName   = "lock"

	incomingPrefix = "in-"
	removedPrefix  = "rm-"
)

// Store is the layers below one root directory.
type Store struct {
	dir   string
	disk  files.Disk
	log   *slog.Logger
	lock  *os.File
	wake  chan struct{} // a token: something is dirty
	hurry chan struct{} // a token: flushBytes are dirty

	faults faults
	usage  usage
	// relieve makes room for what a pull writes; nil: nobody does.
	relieve func(error) bool

	mu         sync.Mutex
	open       map[digest.Digest]*entry
	dirty      map[*Layer]struct{}
	dirtyBytes int64
	warm       map[*Layer]time.Time // which have pages in the page cache, since then
}

// entry is the one place where a digest's Layer is opened and closed.
type entry struct {
	refs int // guarded by Store.mu

	mu    sync.Mutex // held while the layer is opened, closed or removed
	layer *Layer
	dead  bool // the layer was removed: the entry is out of the table
}

func (s *Store) layerDir(d digest.Digest) string {
	return s.dir + "/" + layersName + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// tmpDir names a new folder in tmp.
func (s *Store) tmpDir(prefix string, d digest.Digest) string {
	return s.dir + "/" + tmpName + "/" + prefix + d.Encoded()[:12] + "-" + rand.Text()
}
