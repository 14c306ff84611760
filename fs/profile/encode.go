package profile

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// MediaType is that of an encoded profile.
const MediaType = "application/vnd.mica.profile.v1"

// An encoded profile (docs/profile-format.md):
//
//	0  7  magic "MICAPRO"
//	7  1  version, 1
//	8     one zstd frame with the body, with its size and a checksum
//
// The body is a row of unsigned varints, as encoding/binary has them, signed ones zigzag-coded:
//
//	manifest     a digest: 1 sha256, 2 sha512 or 3 sha384, then its 32, 64 or 48 bytes
//	runs
//	shift        offsets and sizes are in units of 1<<shift bytes; at most 16
//	layers       their count, then their digests, in the order of first use
//	ranges       their count n, then five columns of n numbers each:
//	  layer      index into the layers
//	  off        signed, in units, less the end of the layer's range before (0 for its first)
//	  size       in units, less 1
//	  at         signed, in milliseconds, less that of the range before (0 for the first)
//	  missing    runs that did not read the range
const (
	magic   = "MICAPRO"
	version = 1
)

// tick is the grain of encoded times.
const tick = time.Millisecond

// maxShift bounds the unit of offsets and sizes.
const maxShift = blockShift

// algorithms are the digest algorithms by their number in the format.
func algorithms() []digest.Algorithm {
	return []digest.Algorithm{1: digest.SHA256, 2: digest.SHA512, 3: digest.SHA384}
}

// Encode returns the profile in Mica's binary format, with times cut to milliseconds. Equal
// profiles have equal encodings. The error wraps ErrInvalid.
func (p *Profile) Encode() ([]byte, error) {
	if err := p.Check(Limits{}); err != nil {
		return nil, err
	}
	// A single segment always names its size. The best level is a percent better, and takes tens of
	// megabytes for its tables.
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithEncoderConcurrency(1),
		zstd.WithSingleSegment(true))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	out := append([]byte(magic), version)
	return z.EncodeAll(p.body(), out), nil
}

func (p *Profile) body() []byte {
	shift := p.shift()
	b := appendDigest(nil, p.Manifest)
	b = binary.AppendUvarint(b, uint64(p.Runs))
	b = binary.AppendUvarint(b, uint64(shift))
	ids := map[digest.Digest]uint64{}
	var layers []digest.Digest
	for _, r := range p.Ranges {
		if _, ok := ids[r.Layer]; !ok {
			ids[r.Layer] = uint64(len(layers))
			layers = append(layers, r.Layer)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(layers)))
	for _, l := range layers {
		b = appendDigest(b, l)
	}
	b = binary.AppendUvarint(b, uint64(len(p.Ranges)))
	for _, r := range p.Ranges {
		b = binary.AppendUvarint(b, ids[r.Layer])
	}
	ends := map[digest.Digest]int64{}
	for _, r := range p.Ranges {
		b = binary.AppendVarint(b, (r.Off-ends[r.Layer])>>shift)
		ends[r.Layer] = r.End()
	}
	for _, r := range p.Ranges {
		b = binary.AppendUvarint(b, uint64(r.Size>>shift)-1)
	}
	var before time.Duration
	for _, r := range p.Ranges {
		b = binary.AppendVarint(b, int64(r.At/tick-before))
		before = r.At / tick
	}
	for _, r := range p.Ranges {
		b = binary.AppendUvarint(b, uint64(p.Runs-r.Runs))
	}
	return b
}

// shift returns the largest unit, as a power of two, that all offsets and sizes are multiples of.
func (p *Profile) shift() int {
	all := uint64(1) << maxShift
	for _, r := range p.Ranges {
		all |= uint64(r.Off) | uint64(r.Size)
	}
	return bits.TrailingZeros64(all)
}

// appendDigest appends a digest that Validate accepts.
func appendDigest(b []byte, d digest.Digest) []byte {
	for i, a := range algorithms() {
		if a == d.Algorithm() {
			b = append(b, byte(i))
		}
	}
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		panic("profile: digest that was validated: " + err.Error())
	}
	return append(b, sum...)
}
