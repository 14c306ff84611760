package store

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// usage counts the bytes that folders of layers take on disk, holes left out. A folder is measured
// when it is opened and whenever its files have become durable or smaller; what is written between
// two measurements is added.
type usage struct {
	mu     sync.Mutex
	total  int64
	layers map[digest.Digest]*space
}

// space is what one folder takes. It counts until the folder goes: a Layer that was removed and is
// still open may write what is nobody's any more.
type space struct {
	bytes int64
	gone  bool
}

// Used returns the bytes that all layers take on disk, holes left out, with those on their way in.
func (s *Store) Used() int64 {
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	return s.usage.total
}

// of returns the space of layer d, which is a new one after forget.
func (u *usage) of(d digest.Digest) *space {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.layers[d]
	if f == nil {
		f = &space{}
		u.layers[d] = f
	}
	return f
}

// set notes what a folder was measured to take.
func (u *usage) set(f *space, n int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !f.gone {
		u.total += n - f.bytes
		f.bytes = n
	}
}

// measure counts anew what a folder takes.
func (u *usage) measure(f *space, dir string) (int64, error) {
	n, err := diskUsage(dir)
	if err == nil {
		u.set(f, n)
	}
	return n, err
}

// add notes that n bytes were written in a folder.
func (u *usage) add(f *space, n int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !f.gone {
		u.total += n
		f.bytes += n
	}
}

// end says that a folder is not there any more.
func (u *usage) end(f *space) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total -= f.bytes
	f.bytes, f.gone = 0, true
}

// forget is end for the folder of a layer.
func (u *usage) forget(d digest.Digest) {
	u.end(u.of(d))
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.layers, d)
}

// DiskUsage returns the bytes that the layer's files take on disk, holes left
// out.
func (l *Layer) DiskUsage() (int64, error) {
	l.writing.Lock() // what is being written now is added by its writer
	defer l.writing.Unlock()
	return l.store.usage.measure(l.space, l.dir)
}

// measureIdle is Measure unless somebody writes: no flush waits for that.
func (l *Layer) measureIdle() {
	if !l.writing.TryLock() {
		return
	}
	defer l.writing.Unlock()
	if _, err := l.store.usage.measure(l.space, l.dir); err != nil {
		l.log.Warn("what the layer takes on disk is not known", "err", err)
	}
}

// Measure counts anew what the layer takes, after its files have changed.
func (l *Layer) Measure() {
	if _, err := l.DiskUsage(); err != nil {
		l.log.Warn("what the layer takes on disk is not known", "err", err)
	}
}

// diskUsage adds up what the files in a folder take; a folder that is gone takes nothing.
func diskUsage(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var total int64
	for _, e := range entries {
		var st unix.Stat_t
		err := unix.Lstat(dir+"/"+e.Name(), &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, &fs.PathError{Op: "lstat", Path: dir + "/" + e.Name(), Err: err}
		}
		total += st.Blocks * 512 // st_blocks counts 512 bytes whatever the file system's block
	}
	return total, nil
}
