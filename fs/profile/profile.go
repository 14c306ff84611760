// Package profile holds what a first start of an image reads: ranges of its layers'
// devices (the uncompressed tars), in the order in which they are first accessed. In device
// offsets a profile holds for every format of a layer, and for every index of it.
//
// # The data's way
//
//	reads ──▶ Recorder ──▶ Profile ──▶ Dir (this node) ──▶ next start: fetched in this order
//	                          │  ▲
//	                   Encode │  │ Decode, Merge
//	                          ▼  │
//	                        registry
//
// A Recorder lives for one start, and Recordings has those of all that are recorded now. The profile
// of a start is merged with those of earlier ones, so that what all of them read comes first and
// what only one of many read comes last.
//
// # Concurrency
//
// A Profile is a value: whoever has it may read it, nobody changes one that others see. Recorder,
// Recordings and Dir may be used in parallel.
package profile

import (
	"cmp"
	_ "crypto/sha256" // the digests that go-digest is to know
	_ "crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Profile is what starts of one image read.
type Profile struct {
	Manifest digest.Digest // of the image's manifest, for one platform
	Runs     int           // starts that were recorded, as far as they still count: see Update
	Ranges   []Range       // by first access, the rare ones at the end
}

// Range is a range of a layer's device that starts read. Its end may lie behind the device's, by
// less than BlockSize: who records does not know the device's length.
type Range struct {
	Layer digest.Digest // of the layer's blob, as in the manifest
	Off   int64         // device offset, bytes
	Size  int64         // bytes, never 0
	// At is the time of the first access, since the start's first access to anything: the
	// median over the runs that read the range.
	At   time.Duration
	Runs int // how many of Profile.Runs read it; at least 1
}

// End returns the device offset behind the range.
func (r Range) End() int64 { return r.Off + r.Size }

// Bytes returns the bytes of all ranges.
func (p *Profile) Bytes() int64 {
	var n int64
	for _, r := range p.Ranges {
		n += r.Size
	}
	return n
}

// Layers returns the number of layers that the ranges lie in.
func (p *Profile) Layers() int {
	layers := map[digest.Digest]bool{}
	for _, r := range p.Ranges {
		layers[r.Layer] = true
	}
	return len(layers)
}

// Rare tells whether a range was read by so few of many starts that it stands behind all
// others: by at most a quarter of at least four.
func (p *Profile) Rare(r Range) bool { return p.Runs >= 4 && 4*r.Runs <= p.Runs }

// sort puts the ranges in order: by first access, the rare ones behind the others. Ranges of one
// moment are ordered by place, so that equal profiles have equal encodings.
func (p *Profile) sort() {
	rare := func(r Range) int {
		if p.Rare(r) {
			return 1
		}
		return 0
	}
	slices.SortFunc(p.Ranges, func(a, b Range) int {
		return cmp.Or(cmp.Compare(rare(a), rare(b)), cmp.Compare(a.At, b.At),
			strings.Compare(string(a.Layer), string(b.Layer)),
			cmp.Compare(a.Off, b.Off))
	})
}

// Limits bound a profile that comes from elsewhere. Zero fields mean the defaults.
type Limits struct {
	Encoded int // bytes, as JSON or binary; default 4 MiB
	Layers  int // default 1024; Linux mounts overlays of at most 500
	Ranges  int // default 262,144
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Encoded: cmp.Or(l.Encoded, 4<<20),
		Layers:  cmp.Or(l.Layers, 1024),
		Ranges:  cmp.Or(l.Ranges, 1<<18),
	}
}

// Bounds of a profile's fields: larger values are damage.
const (
	maxOffset = 1 << 50            // bytes; fits every device
	maxAt     = 7 * 24 * time.Hour // of one start
	maxRuns   = 1 << 20
)

// ErrInvalid is wrapped by the errors that mean: this is no profile, or a damaged one, or one
// beyond the limits.
var ErrInvalid = errors.New("invalid profile")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

// Check tells whether the profile keeps to the limits and to what is said of its fields, and that
// no byte of a layer is named twice. The error wraps ErrInvalid.
func (p *Profile) Check(lim Limits) error {
	lim = lim.withDefaults()
	if err := p.Manifest.Validate(); err != nil {
		return invalid("manifest %q: %w", p.Manifest, err)
	}
	if p.Runs < 1 || p.Runs > maxRuns {
		return invalid("%d runs", p.Runs)
	}
	if len(p.Ranges) > lim.Ranges {
		return invalid("%d ranges, at most %d wanted", len(p.Ranges), lim.Ranges)
	}
	layers := map[digest.Digest]bool{}
	for i, r := range p.Ranges {
		if !layers[r.Layer] {
			if err := r.Layer.Validate(); err != nil {
				return invalid("layer %q: %w", r.Layer, err)
			}
			if layers[r.Layer] = true; len(layers) > lim.Layers {
				return invalid("more than %d layers", lim.Layers)
			}
		}
		if r.Off < 0 || r.Size <= 0 || r.Off > maxOffset || r.Size > maxOffset-r.Off {
			return invalid("range %d: %d bytes at %d", i, r.Size, r.Off)
		}
		if r.At < 0 || r.At > maxAt || r.Runs < 1 || r.Runs > p.Runs {
			return invalid("range %d: first read after %s by %d of %d runs", i, r.At, r.Runs,
				p.Runs)
		}
	}
	byPlace := slices.SortedFunc(slices.Values(p.Ranges), func(a, b Range) int {
		return cmp.Or(strings.Compare(string(a.Layer), string(b.Layer)), cmp.Compare(a.Off, b.Off))
	})
	for i, r := range byPlace[min(1, len(byPlace)):] {
		if before := byPlace[i]; before.Layer == r.Layer && before.End() > r.Off {
			return invalid("offset %d of layer %s is named twice", r.Off, r.Layer)
		}
	}
	return nil
}
