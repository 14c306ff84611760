package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// loadLayer opens the folder of layer d as the last run left it, or as much of it
// as can be trusted.
func loadLayer(s *Store, e *entry, d digest.Digest) (*Layer, error) {
	dir := s.layerDir(d)
	b, err := readFile(s.disk, dir+"/"+recordName, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := os.Lstat(dir); lerr == nil {
			// It may just have come. Folders come whole, and do not go meanwhile.
			b, err = readFile(s.disk, dir+"/"+recordName, maxRecord)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%w: no %s", ErrDamaged, recordName)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	rec, err := decodeRecord(b, d)
	if err != nil {
		return nil, err
	}
	l := &Layer{
		store:    s,
		digest:   d,
		dir:      dir,
		log:      s.log.With("layer", d.String()),
		entry:    e,
		space:    s.usage.of(d),
		size:     rec.DeviceSize,
		present:  newSet(rec.Spans),
		given:    newSet(rec.Spans),
		zeros:    zeros{},
		record:   rec,
		recorded: rec.State,
	}
	l.own.sure = newSet(rec.Spans)
	open := func(name string, flag int) func() (files.File, error) {
		return func() (files.File, error) { return s.disk.Open(dir+"/"+name, flag) }
	}
	l.device.open = open(deviceName, os.O_RDWR)
	l.direct.open = open(deviceName, os.O_RDONLY|unix.O_DIRECT)
	l.windows.open = open(windowsName, os.O_RDONLY)
	if err := l.loadPresence(); err != nil {
		return nil, err
	}
	l.loadReads()
	l.Measure()
	return l, nil
}

// loadPresence finds out what is present: everything in a layer that the
// record calls complete, else what the map says, else nothing.
func (l *Layer) loadPresence() error {
	size, sealed, err := l.deviceLength()
	l.sealed = sealed
	if err != nil {
		return err
	}
	if size != l.Size() {
		return l.reset(fmt.Errorf("device has %d bytes instead of %d", size, l.Size()))
	}
	if l.record.State > Lazy {
		l.present.fill()
		l.bytes = l.size
		l.markDurable(l.present.snapshot(), l.bytes)
		return nil
	}
	p, err := loadPresence(l.store.disk, l.dir+"/"+presentName, l.record.mapping())
	if err != nil && !errors.Is(err, errNoMap) {
		return err // the map may be good
	}
	if err != nil {
		l.log.Warn("layer is fetched again", "err", err)
		// Never write into what is left of it: a slot could become whole
		// again, with a generation above the new one's.
		if err := l.store.disk.RemoveAll(l.dir + "/" + presentName); err != nil {
			return err
		}
	}
	if p == nil {
		if l.sealed {
			// It came whole and was not recorded in time. The kernel may still read it; what comes
			// goes elsewhere.
			_, err := l.renew()
			return err
		}
		return nil
	}
	l.present.restore(p.bits)
	l.bytes = p.bytes
	l.generation = p.generation
	l.markDurable(p.bits, p.bytes)
	return nil
}

// reset starts the layer anew because its device is not what the rest of the
// folder says.
func (l *Layer) reset(why error) error {
	l.log.Warn("layer is fetched again", "err", why)
	l.record.State = Lazy
	_, err := l.renew()
	return err
}

// shut is the last Close.
func (l *Layer) shut() error {
	err := l.flush()
	if err != nil {
		err = fmt.Errorf("close layer %s: %w", l.digest, err)
	}
	l.SaveReads()
	l.flushMu.Lock()
	l.gone = true
	l.flushMu.Unlock()
	l.store.forget(l)
	return errors.Join(err, l.device.close(), l.direct.close(), l.windows.close())
}
