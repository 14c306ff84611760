package index

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Version is the version of the index file that this package writes and the
// highest that it reads.
const Version = 1

// Header names the layer that an index describes.
type Header struct {
	Layer       digest.Digest // of the blob, compressed as it is
	LayerSize   int64         // bytes of the blob
	DiffID      digest.Digest // of the device: the uncompressed tar
	DeviceSize  int64         // bytes of the device
	WindowsSize int64         // bytes of the layer's windows section, which lies apart
}

// NamesSize is how many bytes AppendNames appends.
const NamesSize = 2*digestSize + 16

// AppendNames appends what an index file and the table of a bundle begin with to tell which layer
// they speak of: the two digests of 72 bytes (see encodeDigest), the sizes of blob and device of 8.
func (h *Header) AppendNames(b []byte) ([]byte, error) {
	for _, d := range []digest.Digest{h.Layer, h.DiffID} {
		e, err := encodeDigest(d)
		if err != nil {
			return nil, err
		}
		b = append(b, e[:]...)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(h.LayerSize))
	return binary.LittleEndian.AppendUint64(b, uint64(h.DeviceSize)), nil
}

// ParseNames makes a header of what AppendNames appended, NamesSize bytes, and of the size of the
// layer's windows, and checks it. Errors wrap ErrCorrupt.
func ParseNames(b []byte, windows int64) (Header, error) {
	h := Header{WindowsSize: windows}
	for i, d := range []*digest.Digest{&h.Layer, &h.DiffID} {
		var err error
		if *d, err = decodeDigest(b[i*digestSize:][:digestSize]); err != nil {
			return h, err
		}
	}
	b = b[2*digestSize:]
	h.LayerSize = int64(binary.LittleEndian.Uint64(b))
	h.DeviceSize = int64(binary.LittleEndian.Uint64(b[8:]))
	if err := h.check(); err != nil {
		return h, corrupt("%v", err)
	}
	return h, nil
}

// check says what is wrong with h as the header of a layer that can be indexed.
func (h *Header) check() error {
	if _, err := encodeDigest(h.Layer); err != nil {
		return fmt.Errorf("layer digest: %w", err)
	}
	if _, err := encodeDigest(h.DiffID); err != nil {
		return fmt.Errorf("diffID: %w", err)
	}
	if h.LayerSize < 0 || h.WindowsSize < 0 || h.DeviceSize < 0 {
		return fmt.Errorf("sizes %d, %d, %d: negative", h.LayerSize, h.DeviceSize, h.WindowsSize)
	}
	if h.DeviceSize > erofs.MaxDevice {
		return fmt.Errorf("uncompressed layer of %d bytes: an index addresses at most %d",
			h.DeviceSize, erofs.MaxDevice)
	}
	return nil
}

// The header of the index file: the first 1024 bytes. All numbers here and in
// the sections are little-endian.
//
//	  0   8  magic "MICAIDX\n"
//	  8   4  version
//	 12   4  flags, 0
//	 16   4  crc32c of these 1024 bytes with this field zero
//	 20   4  0
//	 24   8  size of the file
//	 32  72  layer digest (see encodeDigest)
//	104  72  diffID
//	176   8  size of the layer's blob
//	184   8  size of the device
//	192   8  size of the windows
//	200  48  section tree: offset 1024, size, sha256
//	248  48  section spans
//	296  48  section implicit directories
//	344  48  content digests: offset in the windows section, size, sha256. Older writers
//	         made some, which nothing reads; the size is 0 now
//	392 632  0
const (
	headerMagic = "MICAIDX\n"
	namesAt     = 32
	sectionAt   = 200
	sectionSize = 48
	headerUsed  = sectionAt + sections*sectionSize
)

// HeaderSize is how many bytes at the start of an index file are its header.
const HeaderSize = erofs.SuperOffset

// Sections of an index. The content digests of older writers lie outside of the file, behind the
// windows.
const (
	sectionTree = iota
	sectionSpans
	sectionImplicit
	sectionDigests
	sections
)

// section is a range of bytes with its digest.
type section struct {
	Range
	sum [sha256.Size]byte
}

// castagnoli is the polynomial of the header's checksum.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// FileHeader is the header of an index file: the layer's names and sizes, and size and digest of
// each part of the file. So it tells one file from all others.
type FileHeader struct {
	Header
	size    int64 // of the file
	section [sections]section
}

// Digests returns how many bytes of content digests, which nothing reads any more, an older writer
// has put behind the layer's windows.
func (h *FileHeader) Digests() int64 { return h.section[sectionDigests].Size }

// encode returns the bytes of h.
func (h *FileHeader) encode() ([HeaderSize]byte, error) {
	var b [HeaderSize]byte
	copy(b[:], headerMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], Version)
	le.PutUint64(b[24:], uint64(h.size))
	if _, err := h.AppendNames(b[:namesAt]); err != nil {
		return b, err
	}
	le.PutUint64(b[namesAt+NamesSize:], uint64(h.WindowsSize))
	for i, s := range h.section {
		at := b[sectionAt+i*sectionSize:]
		le.PutUint64(at, uint64(s.Off))
		le.PutUint64(at[8:], uint64(s.Size))
		copy(at[16:], s.sum[:])
	}
	le.PutUint32(b[16:], crc32.Checksum(b[:], castagnoli))
	return b, nil
}

// DecodeHeader parses and checks a header, HeaderSize bytes, for a file of the given size in
// bytes: sections follow each other without gaps and end at the file's end. Errors wrap ErrCorrupt,
// that of a version that is too new ErrNewer.
func DecodeHeader(b []byte, size int64) (*FileHeader, error) {
	if len(b) != HeaderSize {
		return nil, corrupt("header of %d bytes", len(b))
	}
	le := binary.LittleEndian
	if string(b[:8]) != headerMagic {
		return nil, corrupt("not an index file")
	}
	// The version comes before the checksum, whose place a later version may change.
	if v := le.Uint32(b[8:]); v > Version {
		return nil, fmt.Errorf("index version %d is %w (%d): upgrade mica", v, ErrNewer, Version)
	} else if v == 0 {
		return nil, corrupt("version 0")
	}
	sum := le.Uint32(b[16:])
	c := [HeaderSize]byte(b)
	clear(c[16:20])
	if crc32.Checksum(c[:], castagnoli) != sum {
		return nil, corrupt("header checksum")
	}
	h := &FileHeader{size: int64(le.Uint64(b[24:]))}
	if h.size != size {
		return nil, corrupt("header says %d bytes, the file has %d", h.size, size)
	}
	var err error
	windows := int64(le.Uint64(b[namesAt+NamesSize:]))
	if h.Header, err = ParseNames(b[namesAt:][:NamesSize], windows); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	for i := range h.section {
		at := b[sectionAt+i*sectionSize:]
		h.section[i].Off = int64(le.Uint64(at))
		h.section[i].Size = int64(le.Uint64(at[8:]))
		copy(h.section[i].sum[:], at[16:])
	}
	if !allZero(b[12:16]) || !allZero(b[20:24]) || !allZero(b[headerUsed:]) {
		return nil, corrupt("header: reserved bytes are in use")
	}
	return h, h.checkSections()
}

func (h *FileHeader) checkSections() error {
	end := int64(HeaderSize)
	for i, s := range h.section[:sectionDigests] {
		if s.Off != end || s.Size < 0 || s.Size > h.size-end {
			return corrupt("section %d at %d with %d bytes: does not follow byte %d", i, s.Off, s.Size, end)
		}
		end += s.Size
	}
	if end != h.size {
		return corrupt("sections end at byte %d of %d", end, h.size)
	}
	if n := h.section[sectionSpans].Size; n%spanSize != 0 || n > MaxSpans*spanSize {
		return corrupt("span table of %d bytes", n)
	}
	// An implicit directory is an inode of the tree.
	most := h.section[sectionTree].Size / erofs.InodeSize
	if n := h.section[sectionImplicit].Size; n%8 != 0 || n/8 > most {
		return corrupt("list of implicit directories of %d bytes", n)
	}
	d := h.section[sectionDigests]
	const record = 4 + sha256.Size // nid of a file, digest
	if d.Off != h.WindowsSize || d.Size < 0 || d.Size%record != 0 || d.Size > 1<<40 {
		return corrupt("content digests at %d with %d bytes", d.Off, d.Size)
	}
	return nil
}

// device is what the superblock says of the device.
func (h *Header) device() erofs.Device { return erofs.Device{Size: h.DeviceSize, DiffID: h.DiffID} }

// A digest takes 72 bytes: its algorithm in 8 (1: sha256, 2: sha512), its
// value in 64, zeros behind a shorter one.
const digestSize = 72

func encodeDigest(d digest.Digest) ([digestSize]byte, error) {
	var b [digestSize]byte
	if err := d.Validate(); err != nil {
		return b, fmt.Errorf("digest %.100q: %w", d, err)
	}
	switch d.Algorithm() {
	case digest.SHA256:
		b[0] = 1
	case digest.SHA512:
		b[0] = 2
	default:
		return b, fmt.Errorf("digest %.100q: an index knows sha256 and sha512", d)
	}
	raw, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return b, fmt.Errorf("digest %.100q: %w", d, err)
	}
	copy(b[8:], raw)
	return b, nil
}

func decodeDigest(b []byte) (digest.Digest, error) {
	if !allZero(b[1:8]) {
		return "", corrupt("digest algorithm")
	}
	switch b[0] {
	case 1:
		if !allZero(b[8+32:]) {
			return "", corrupt("digest")
		}
		return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(b[8:8+32])), nil
	case 2:
		return digest.NewDigestFromEncoded(digest.SHA512, hex.EncodeToString(b[8:digestSize])), nil
	}
	return "", corrupt("digest algorithm %d", b[0])
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
