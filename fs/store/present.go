package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/bits"
	"os"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// The presence map's format is in the package comment.
const (
	presentName    = "present"
	presentMagic   = "MicaPres"
	presentVersion = 1
	presentHeader  = 88
	presentAlign   = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC-32C of b, of which the four bytes from 12 on, where it is kept, count as
// zero.
func checksum(b []byte) uint32 {
	sum := crc32.Checksum(b[:12], castagnoli)
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, b[16:])
}

// presence is the content of one slot of a map.
type presence struct {
	generation uint64
	bytes      int64 // sum of the sizes of the present spans
	bits       []uint64
}

// mapping is what a map is bound to: a map made for anything else is empty.
type mapping struct {
	layer      [sha256.Size]byte // sha256 of "layer digest \0 diffID"
	deviceSize int64
	spans      int
}

func (r *Record) mapping() mapping {
	return mapping{
		layer:      sha256.Sum256([]byte(string(r.Layer) + "\x00" + string(r.DiffID))),
		deviceSize: r.DeviceSize,
		spans:      r.Spans,
	}
}

// slotSize is the distance of the two slots: whole 4 KiB pages, so that a torn
// write to one never touches the other.
func (m *mapping) slotSize() int64 {
	n := int64(presentHeader) + 8*int64(words(m.spans))
	return (n + presentAlign - 1) / presentAlign * presentAlign
}

// encode makes a slot, slotSize bytes long.
func (m *mapping) encode(p *presence) []byte {
	b := make([]byte, m.slotSize())
	le := binary.LittleEndian
	copy(b, presentMagic)
	le.PutUint32(b[8:], presentVersion)
	le.PutUint64(b[16:], p.generation)
	copy(b[24:], m.layer[:])
	le.PutUint64(b[56:], uint64(m.deviceSize))
	le.PutUint64(b[64:], uint64(m.spans))
	le.PutUint64(b[72:], uint64(p.bytes))
	for i, w := range p.bits {
		le.PutUint64(b[presentHeader+8*i:], w)
	}
	le.PutUint32(b[12:], checksum(b))
	return b
}

// decode reads a slot and says why it cannot be used.
func (m *mapping) decode(b []byte) (*presence, error) {
	le := binary.LittleEndian
	if int64(len(b)) != m.slotSize() {
		return nil, errors.New("short")
	}
	if string(b[:8]) != presentMagic {
		return nil, errors.New("no presence map")
	}
	if checksum(b) != le.Uint32(b[12:]) {
		return nil, errors.New("wrong checksum")
	}
	if v := le.Uint32(b[8:]); v != presentVersion {
		return nil, fmt.Errorf("version %d, known is %d", v, presentVersion)
	}
	if [sha256.Size]byte(b[24:56]) != m.layer || le.Uint64(b[56:]) != uint64(m.deviceSize) || le.Uint64(b[64:]) != uint64(m.spans) {
		return nil, errors.New("of another layer")
	}
	p := &presence{
		generation: le.Uint64(b[16:]),
		bytes:      int64(le.Uint64(b[72:])),
		bits:       make([]uint64, words(m.spans)),
	}
	var count int
	for i := range p.bits {
		p.bits[i] = le.Uint64(b[presentHeader+8*i:])
		count += bits.OnesCount64(p.bits[i])
	}
	if r := m.spans & 63; r != 0 && p.bits[len(p.bits)-1]>>r != 0 {
		return nil, errors.New("bits of spans that there are not")
	}
	// A span has at least one byte, and only all of them are the whole device.
	if p.bytes < int64(count) || p.bytes > m.deviceSize || (count == m.spans) != (p.bytes == m.deviceSize) {
		return nil, fmt.Errorf("%d bytes in %d spans", p.bytes, count)
	}
	return p, nil
}

// errNoMap is wrapped by the reasons why a presence map is of no use. Other errors say nothing
// about it.
var errNoMap = errors.New("presence map is not usable")

// loadPresence reads the newer usable slot. A map that is not there is nil
// without an error; one that is there but not usable is an error that wraps errNoMap.
func loadPresence(d files.Disk, name string, m mapping) (*presence, error) {
	f, err := d.Open(name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var best *presence
	var bad error
	slot := make([]byte, m.slotSize())
	for k := range int64(2) {
		n, err := f.ReadAt(slot, k*m.slotSize())
		if err != nil && !errors.Is(err, io.EOF) {
			bad = fmt.Errorf("slot %d: %w", k, err)
			continue
		}
		p, err := m.decode(slot[:n])
		switch {
		case err != nil:
			bad = fmt.Errorf("slot %d: %w", k, err)
		case best == nil || p.generation > best.generation:
			best = p
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w: %w", errNoMap, bad)
	}
	return best, nil
}

// storePresence writes p into the slot of its generation's parity and makes it
// durable. What p calls present must be durable already.
func (s *Store) storePresence(dir string, m mapping, p *presence) (err error) {
	f, err := s.disk.Open(dir+"/"+presentName, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		// The other slot reads as zeros, which is no map.
		b := make([]byte, 2*m.slotSize())
		copy(b[int64(p.generation&1)*m.slotSize():], m.encode(p))
		return s.writeFile(dir, presentName, b)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(m.encode(p), int64(p.generation&1)*m.slotSize()); err != nil {
		return err
	}
	return f.Sync()
}
