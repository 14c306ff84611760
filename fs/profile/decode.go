package profile

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// Bounds of the body: a digest takes at most 65 bytes, a number of the head at most 10, a range at
// most five numbers.
const (
	maxDigest = 1 + 64
	maxHead   = maxDigest + 4*binary.MaxVarintLen64
	maxRange  = 5 * binary.MaxVarintLen64
)

// Decode returns the profile that Encode made. It allocates no more than the limits and b's own
// length allow. The error wraps ErrInvalid.
func Decode(b []byte, lim Limits) (*Profile, error) {
	lim = lim.withDefaults()
	if len(b) > lim.Encoded {
		return nil, invalid("%d bytes, at most %d wanted", len(b), lim.Encoded)
	}
	if len(b) < len(magic)+1 || string(b[:len(magic)]) != magic {
		return nil, invalid("it does not begin with %q", magic)
	}
	if v := b[len(magic)]; v != version {
		return nil, invalid("version %d is not known: a newer mica made it", v)
	}
	frame := b[len(magic)+1:]
	most := maxHead + lim.Layers*maxDigest + lim.Ranges*maxRange
	// The decoder trusts the size in the frame's header when it allocates.
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return nil, invalid("%w", err)
	}
	if !h.HasFCS || h.FrameContentSize > uint64(most) {
		return nil, invalid("frame of %d bytes, at most %d wanted", h.FrameContentSize, most)
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(uint64(max(most, 1<<20))))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	body, err := z.DecodeAll(frame, nil)
	if err != nil {
		return nil, invalid("%w", err)
	}
	d := decoder{rest: body}
	p := d.profile(lim)
	if d.err == nil && len(d.rest) > 0 {
		d.err = errors.New("bytes behind the end")
	}
	if d.err != nil {
		return nil, invalid("%w", d.err)
	}
	if err := p.Check(lim); err != nil {
		return nil, err
	}
	return p, nil
}

// decoder takes a body apart. After an error all of its methods return zero.
type decoder struct {
	rest []byte
	err  error
}

var errShort = errors.New("it ends early")

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.rest = nil
}

func (d *decoder) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.fail(errShort)
		return 0
	}
	if d.rest = d.rest[n:]; v > limit {
		d.fail(errors.New("a number is out of range"))
		return 0
	}
	return v
}

func (d *decoder) int(limit int64) int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.fail(errShort)
		return 0
	}
	if d.rest = d.rest[n:]; v > limit || v < -limit {
		d.fail(errors.New("a number is out of range"))
		return 0
	}
	return v
}

func (d *decoder) digest() digest.Digest {
	known := algorithms()
	if len(d.rest) == 0 {
		d.fail(errShort)
		return ""
	}
	i := int(d.rest[0])
	if i == 0 || i >= len(known) {
		d.fail(errors.New("unknown digest algorithm"))
		return ""
	}
	end := 1 + known[i].Size()
	if len(d.rest) < end {
		d.fail(errShort)
		return ""
	}
	sum := d.rest[1:end]
	d.rest = d.rest[end:]
	return digest.NewDigestFromBytes(known[i], sum)
}

func (d *decoder) profile(lim Limits) *Profile {
	p := &Profile{Manifest: d.digest(), Runs: int(d.uint(maxRuns))}
	shift := d.uint(maxShift)
	layers := make([]digest.Digest, d.uint(uint64(lim.Layers)))
	for i := range layers {
		layers[i] = d.digest()
	}
	n := d.uint(uint64(lim.Ranges))
	if n > uint64(len(d.rest)/5) { // each of the five columns has at least a byte for it
		d.fail(errShort)
	}
	if d.err != nil {
		return nil
	}
	p.Ranges = make([]Range, n)
	ids := make([]int, n)
	for i := range ids {
		if ids[i] = int(d.uint(uint64(len(layers)))); d.err == nil && ids[i] == len(layers) {
			d.fail(errors.New("a range has no layer"))
		}
		if d.err != nil {
			return nil
		}
		p.Ranges[i].Layer = layers[ids[i]]
	}
	ends := make([]int64, len(layers))
	for i := range ids {
		p.Ranges[i].Off = d.int(maxOffset) // its end is known when its size is
	}
	for i, id := range ids {
		r := &p.Ranges[i]
		r.Size = int64(d.uint(maxOffset>>shift)+1) << shift
		delta := r.Off
		if delta > maxOffset>>shift || delta < -(maxOffset>>shift) {
			d.fail(errors.New("an offset is out of range"))
		}
		if r.Off = ends[id] + delta<<shift; r.Off < 0 || r.Off > maxOffset ||
			r.Size > maxOffset-r.Off {
			d.fail(errors.New("an offset is out of range"))
			return nil
		}
		ends[id] = r.End()
	}
	var at int64
	for i := range p.Ranges {
		at += d.int(int64(maxAt / tick))
		p.Ranges[i].At = time.Duration(at) * tick
		if at < 0 || at > int64(maxAt/tick) {
			d.fail(errors.New("a time is out of range"))
			return nil
		}
	}
	for i := range p.Ranges {
		p.Ranges[i].Runs = p.Runs - int(d.uint(uint64(p.Runs)))
	}
	return p
}
