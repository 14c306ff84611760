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
// be believed. Know tells the digests.
//
//	Read ─┬─ some span not present ──────────────▶ ErrMissing
//	      └─ makeSure ─▶ device ─┬─ settled ─────▶ the bytes
//	                             └─ zeros, or not sure: readCompared ─┬─▶ the bytes
//	                                                                  └─▶ lose ─▶ ErrMissing, or
//	                                                                      ErrUnreadable: it stays
//
// # Page cache
//
// The readers of a device keep what they read: EROFS and FUSE have the bytes in
// the page cache as their own files' pages, and the device's pages are a second
// copy. So large reads go past the page cache (O_DIRECT), where that is no
// detour: of bytes that are durable and that the page cache does not hold. What
// it holds, having just been written, is read from there, and dropped once a
// reader has it, or after a minute at most. Small reads go through the page
// cache, whose readahead they need.
//
// # Concurrency
//
// All methods of Store and Layer may run in parallel. Presence is read without
// locks. One process at a time has a store open.
package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

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
	used  chan struct{} // a token: dropBytes can be dropped from the page cache

	faults faults
	usage  usage

	mu         sync.Mutex
	open       map[digest.Digest]*entry
	dirty      map[*Layer]struct{}
	dirtyBytes int64
	warm       map[*Layer]struct{} // which may have pages in the page cache
	usedBytes  int64               // of these, what can be dropped
}

// entry is the one place where a digest's Layer is opened and closed.
type entry struct {
	refs int // guarded by Store.mu

	mu    sync.Mutex // held while the layer is opened, closed or removed
	layer *Layer
	dead  bool // the layer was removed: the entry is out of the table
}

// Open opens the store below dir, which is made if it is not there, and removes
// what a crash left in tmp. It is paired with Close.
func Open(dir string) (*Store, error) {
	return OpenOn(dir, files.OS{})
}

// OpenOn is Open with a disk of another kind, which tests have fail.
func OpenOn(dir string, d files.Disk) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		dir:   dir,
		disk:  d,
		log:   slog.Default(),
		wake:  make(chan struct{}, 1),
		hurry: make(chan struct{}, 1),
		used:  make(chan struct{}, 1),
		open:  map[digest.Digest]*entry{},
		dirty: map[*Layer]struct{}{},
		warm:  map[*Layer]struct{}{},
		usage: usage{layers: map[digest.Digest]*space{}},
	}
	if err := s.makeFolders(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	if err := s.takeLock(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	if err := errors.Join(s.clean(), s.measureAll()); err != nil {
		s.lock.Close()
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

// makeFolders makes what is missing of the store's own folders, durably, so that
// no Commit need do it.
func (s *Store) makeFolders() error {
	names := []string{tmpName}
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		names = append(names, layersName+"/"+a.String())
	}
	for _, name := range names {
		if err := s.disk.Mkdir(s.dir + "/" + name); err != nil {
			return err
		}
	}
	return errors.Join(s.disk.SyncDir(s.dir+"/"+layersName), s.disk.SyncDir(s.dir))
}

// takeLock keeps a second process out. The kernel lets go of the lock when the
// process ends, however it ends.
func (s *Store) takeLock() error {
	f, err := os.OpenFile(s.dir+"/"+lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("in use by another process (%s is locked): %w", f.Name(), err)
		}
		return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	s.lock = f
	return nil
}

// clean removes what is left in tmp of layers that came or went; what else may
// lie there is not ours.
func (s *Store) clean() error {
	left, err := os.ReadDir(s.dir + "/" + tmpName)
	if err != nil {
		return err
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), incomingPrefix) || strings.HasPrefix(e.Name(), removedPrefix) {
			if err := s.disk.RemoveAll(s.dir + "/" + tmpName + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close makes durable what is present and lets another process open the store.
// Layers are closed before it, and Run has returned.
func (s *Store) Close() error {
	err := s.Flush()
	if err := errors.Join(err, s.lock.Close()); err != nil {
		return fmt.Errorf("close store %s: %w", s.dir, err)
	}
	return nil
}

func (s *Store) layerDir(d digest.Digest) string {
	return s.dir + "/" + layersName + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// tmpDir names a new folder in tmp.
func (s *Store) tmpDir(prefix string, d digest.Digest) string {
	return s.dir + "/" + tmpName + "/" + prefix + d.Encoded()[:12] + "-" + rand.Text()
}

func (s *Store) exists(name string) (bool, error) {
	_, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Layer opens a layer that the store has; the error wraps fs.ErrNotExist if it
// has not, and ErrDamaged if its folder is not usable.
func (s *Store) Layer(d digest.Digest) (*Layer, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("open layer %q: %w", d, err)
	}
	for {
		e := s.ref(d)
		l, err := e.load(s, d)
		if l != nil {
			return l, nil
		}
		if err = errors.Join(err, s.unref(d, e)); err != nil {
			return nil, fmt.Errorf("open layer %s: %w", d, err)
		}
		// The layer was removed since ref: look for another of its name.
	}
}

// ref returns the table's entry of d, with one reference more.
func (s *Store) ref(d digest.Digest) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.open[d]
	if e == nil {
		e = &entry{}
		s.open[d] = e
	}
	e.refs++
	return e
}

// load returns the entry's layer, loaded if need be; nil where the entry is dead.
func (e *entry) load(s *Store, d digest.Digest) (*Layer, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead {
		return nil, nil
	}
	if e.layer == nil {
		l, err := loadLayer(s, e, d)
		if err != nil {
			return nil, err
		}
		e.layer = l
	}
	return e.layer, nil
}

// unref takes back one reference. The last one shuts the layer; the entry stays in
// the table until that is done, so that nobody loads the folder while the
// layer's last flush writes to it.
func (s *Store) unref(d digest.Digest, e *entry) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.mu.Lock()
	e.refs--
	last := e.refs == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	// Who refers to the entry from here on waits for its mu, and loads anew.
	var err error
	if e.layer != nil {
		err = e.layer.shut()
		e.layer = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.refs == 0 && s.open[d] == e {
		delete(s.open, d)
	}
	return err
}

// Layers returns the digests of all layers that the store has, in no order.
func (s *Store) Layers() ([]digest.Digest, error) {
	var all []digest.Digest
	root := s.dir + "/" + layersName
	algorithms, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	for _, a := range algorithms {
		entries, err := os.ReadDir(root + "/" + a.Name())
		if err != nil {
			return nil, fmt.Errorf("list layers: %w", err)
		}
		for _, e := range entries {
			d := digest.NewDigestFromEncoded(digest.Algorithm(a.Name()), e.Name())
			if d.Validate() == nil {
				all = append(all, d)
			}
		}
	}
	return all, nil
}

// Remove takes a layer out of the store and frees its space; no error if it is
// not there. Who still has it open can go on reading and writing, but nothing of that is
// kept, and the next Store.Layer does not find it.
func (s *Store) Remove(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("remove layer %q: %w", d, err)
	}
	e := s.ref(d)
	trash := s.tmpDir(removedPrefix, d)
	err := s.detach(d, e, trash)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	case err == nil:
		err = s.disk.RemoveAll(trash)
	}
	if err = errors.Join(err, s.unref(d, e)); err != nil {
		return fmt.Errorf("remove layer %s: %w", d, err)
	}
	return nil
}
