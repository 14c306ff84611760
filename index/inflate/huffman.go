package inflate

import "encoding/binary"

const (
	// fastInput is what the fast loop may load in one round: two refills, of
	// which the first goes on by up to 7 bytes, and each loads 8.
	fastInput = 16
	// fastOutput is what the fast loop may write in one round: three entries of
	// literals of 2 bytes, and a match of 258 bytes that is written 8 bytes
	// at a time and at least leap.
	fastOutput = 3*2 + 258 + leap
	// leap is how many bytes of a match are written at once, however few it has.
	leap = 24
)

// huffman decodes symbols until the block ends, the output is full or the
// input runs out; done is true at the end of the block.
func (d *Decoder) huffman(dst []byte, w int, in *reader) (nw int, done bool, err error) {
	if d.copyLen > 0 {
		w, err = d.match(dst, w, d.copyDist, d.copyLen)
		if d.copyLen > 0 || err != nil {
			return w, false, err
		}
	}
	for {
		if len(in.src)-in.r >= fastInput && len(dst)-w >= fastOutput {
			w, done, err = d.fast(dst, w, in)
			if done || err != nil {
				return w, done, err
			}
		}
		var more bool
		w, more, done, err = d.symbol(dst, w, in)
		if done || !more || err != nil {
			return w, done, err
		}
	}
}

// symbol decodes one symbol with all checks. more is false where the output is
// full or the input is less than a symbol, of which nothing is then read.
func (d *Decoder) symbol(dst []byte, w int, in *reader) (nw int, more, done bool, err error) {
	if w == len(dst) {
		return w, false, false, nil
	}
	in.need(maxCode + 5 + maxCode + 13)
	hold := in.hold & (1<<in.n - 1)
	e := d.lit[hold&(1<<litBits-1)]
	n := uint(0) // bits taken in all
	if e&flagSpecial != 0 && e&flagSub != 0 {
		n = litBits
		e = d.lit[uint64(e>>16)+hold>>litBits&(litSub-1)]
	}
	if e == invalid {
		if in.n < maxCode {
			return w, false, false, nil
		}
		return w, false, false, corrupt("literal or length code")
	}
	if e&flagLiteral != 0 {
		if e&(2*oneByte) != 0 {
			e = e&^0xff | e>>10&15 // the first one alone
		}
		n += uint(e & 0xff)
		if in.n < n {
			return w, false, false, nil
		}
		in.take(n)
		dst[w] = byte(e >> 16)
		return w + 1, true, false, nil
	}
	if in.n < n+uint(e&0xff) {
		return w, false, false, nil
	}
	if e&flagSpecial != 0 {
		in.take(n + uint(e&0xff))
		return w, false, true, nil
	}
	length := int(e>>16) + int(hold>>n&(1<<(e&0xff)-1)>>(e>>8&31))
	n += uint(e & 0xff)

	e = d.dist[hold>>n&(1<<distBits-1)]
	if e&flagSpecial != 0 && e&flagSub != 0 {
		n += distBits
		e = d.dist[uint64(e>>16)+hold>>n&(distSub-1)]
	}
	if e == invalid {
		if in.n < n+maxCode {
			return w, false, false, nil
		}
		return w, false, false, corrupt("distance code")
	}
	if in.n < n+uint(e&0xff) {
		return w, false, false, nil
	}
	dist := int(e>>16) + int(hold>>n&(1<<(e&0xff)-1)>>(e>>8&31))
	n += uint(e & 0xff)
	in.hold >>= n
	in.n -= n
	w, err = d.match(dst, w, dist, length)
	return w, d.copyLen == 0, false, err
}

// match copies a match, or what fits of it, and keeps the rest for later.
func (d *Decoder) match(dst []byte, w, dist, length int) (nw int, err error) {
	n := min(length, len(dst)-w)
	if dist > w {
		if !d.far(dst, w, dist, n) {
			return w, corrupt("distance too far back")
		}
	} else {
		for i := w; i < w+n; i++ {
			dst[i] = dst[i-dist]
		}
	}
	d.copyLen, d.copyDist = length-n, dist
	return w + n, nil
}

// fast decodes symbols while there is so much input and output that only
// distances need a check.
func (d *Decoder) fast(dst []byte, w int, in *reader) (nw int, done bool, err error) {
	src, r := in.src, in.r
	hold, n := in.hold, in.n
	lastR, lastW := len(src)-fastInput, len(dst)-fastOutput
	for r <= lastR && w <= lastW {
		// One check of bounds each for nearly all of a round. Of n only the low 6 bits count: what
		// is above code and extra bits in an entry is not masked before it is taken off.
		next := (*[fastInput]byte)(src[r : r+fastInput])
		out := (*[fastOutput]byte)(dst[w : w+fastOutput])
		hold |= binary.LittleEndian.Uint64(next[:8]) << (n & 63)
		used := (63 - n&63) >> 3
		n |= 56

		// Three primary lookups take at most 36 of 56 bits.
		at := uint(0)
		e := d.lit[hold&(1<<litBits-1)]
		if e&flagLiteral != 0 {
			binary.LittleEndian.PutUint16(out[:2], uint16(e>>16))
			at = uint(e >> 8 & 3)
			hold >>= e & 63
			n -= uint(e)
			e = d.lit[hold&(1<<litBits-1)]
			if e&flagLiteral != 0 {
				binary.LittleEndian.PutUint16(out[at:at+2], uint16(e>>16))
				at += uint(e >> 8 & 3)
				hold >>= e & 63
				n -= uint(e)
				e = d.lit[hold&(1<<litBits-1)]
				if e&flagLiteral != 0 {
					binary.LittleEndian.PutUint16(out[at:at+2], uint16(e>>16))
					w += int(at + uint(e>>8&3))
					hold >>= e & 63
					n -= uint(e)
					r += int(used)
					continue
				}
			}
		}
		w += int(at)
		// 32 bits are left: a long code and extra bits take at most 20.
		if e&flagSpecial != 0 {
			if e&flagSub != 0 {
				hold >>= litBits
				n -= litBits
				e = d.lit[uint64(e>>16)+hold&(litSub-1)]
			}
			if e&flagLiteral != 0 {
				dst[w] = byte(e >> 16)
				w++
				hold >>= e & 63
				n -= uint(e)
				r += int(used)
				continue
			}
			if e&flagSpecial != 0 {
				r += int(used)
				if e == invalid {
					err = corrupt("literal or length code")
					break
				}
				hold >>= e & 63
				n -= uint(e)
				done = true
				break
			}
		}
		length := int(e>>16) + int(hold&(1<<(e&63)-1)>>(e>>8&63))
		hold >>= e & 63
		n -= uint(e)

		hold |= binary.LittleEndian.Uint64(next[used:used+8]) << (n & 63)
		r += int(used + (63-n&63)>>3)
		n |= 56
		e = d.dist[hold&(1<<distBits-1)]
		if e&flagSpecial != 0 {
			if e&flagSub != 0 {
				hold >>= distBits
				n -= distBits
				e = d.dist[uint64(e>>16)+hold&(distSub-1)]
			}
			if e&flagSpecial != 0 {
				err = corrupt("distance code")
				break
			}
		}
		dist := int(e>>16) + int(hold&(1<<(e&63)-1)>>(e>>8&63))
		hold >>= e & 63
		n -= uint(e)

		from := w - dist
		if from < 0 {
			if !d.far(dst, w, dist, length) {
				err = corrupt("distance too far back")
				break
			}
			w += length
			continue
		}
		end := w + length
		if dist >= 8 {
			at &= 7 // as it is; the compiler does not see that
			back := (*[leap]byte)(dst[from : from+leap])
			binary.LittleEndian.PutUint64(out[at:at+8], binary.LittleEndian.Uint64(back[:8]))
			binary.LittleEndian.PutUint64(out[at+8:at+16], binary.LittleEndian.Uint64(back[8:16]))
			binary.LittleEndian.PutUint64(out[at+16:at+leap], binary.LittleEndian.Uint64(back[16:]))
			if length > leap {
				if dist >= length && length > 64 { // a call costs more than a few rounds of the loop
					copy(dst[w+leap:end], dst[from+leap:])
				} else {
					for i := leap; i < length; i += 8 {
						binary.LittleEndian.PutUint64(dst[w+i:], binary.LittleEndian.Uint64(dst[from+i:]))
					}
				}
			}
		} else if dist == 1 {
			v := uint64(dst[from]) * 0x0101010101010101
			for ; w < end; w += 8 {
				binary.LittleEndian.PutUint64(dst[w:], v)
			}
		} else {
			for i := range length {
				dst[w+i] = dst[from+i]
			}
		}
		w = end
	}
	in.r, in.hold, in.n = r, hold, n&63
	return w, done, err
}
