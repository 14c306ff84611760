package store

import "encoding/binary"

// sectorShift is log2 of the smallest piece, in bytes, that a disk can lose by itself.
const sectorShift = 9

// zeros knows sectors of a device that hold nothing but zeros: by 64 sectors, bit i for the i-th of
// them.
type zeros map[int64]uint64

func (z zeros) has(sector int64) bool { return z[sector>>6]>>(sector&63)&1 != 0 }

func (z zeros) add(o zeros) {
	for k, bits := range o {
		z[k] |= bits
	}
}

// zerosIn returns the sectors of zeros that lie in p, which lies at off in the device, as a whole;
// nil: none.
func zerosIn(p []byte, off int64) zeros {
	var z zeros
	eachZero(p, off, func(sector int64, whole bool) bool {
		if whole {
			if z == nil {
				z = zeros{}
			}
			z[sector>>6] |= 1 << (sector & 63)
		}
		return true
	})
	return z
}

// edges says whether p, which lies at off in the device, begins, and whether it ends, with zeros
// that are a part of a sector.
func edges(p []byte, off int64) (head, tail bool) {
	const size = 1 << sectorShift
	first := min(-off&(size-1), int64(len(p)))
	last := min((off+int64(len(p)))&(size-1), int64(len(p)))
	return first > 0 && zero(p[:first]), last > 0 && zero(p[int64(len(p))-last:])
}

// eachZero calls fn for the sectors of which p, which lies at off in the device, has nothing but
// zeros, in order and until fn returns false. whole: p has all of the sector. It says whether fn
// never did.
func eachZero(p []byte, off int64, fn func(sector int64, whole bool) bool) bool {
	const size = 1 << sectorShift
	for len(p) > 0 {
		n := min(size-off&(size-1), int64(len(p)))
		if zero(p[:n]) && !fn(off>>sectorShift, n == size) {
			return false
		}
		p, off = p[n:], off+n
	}
	return true
}

// zero says whether p has no other bytes than zeros.
func zero(p []byte) bool {
	for ; len(p) >= 8; p = p[8:] {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
