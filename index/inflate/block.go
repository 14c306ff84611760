package inflate

// codeOrder is the order in which a dynamic block gives the lengths of the codes
// for code lengths (RFC 1951, 3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// codeBits is the length of the longest code for code lengths.
const codeBits = 7

// codeSymbols are the entries of the symbols of the code for code lengths.
var codeSymbols = func() (t [19]uint32) {
	for i := range t {
		t[i] = uint32(i) << 16
	}
	return t
}()

// buildFixed makes the tables of fixed blocks.
func (d *Decoder) buildFixed() {
	var lit [288]uint8
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	var dist [32]uint8
	for i := range dist {
		dist[i] = 5
	}
	buildLit(&d.lit, lit[:])
	build(d.dist[:], distBits, distSymbols[:], dist[:])
	d.fixed = true
}

// dynamic reads the codes of a dynamic block and makes its tables.
func (d *Decoder) dynamic(in *reader) (ok bool, err error) {
	if !in.need(14) {
		return false, nil
	}
	nlit, ndist, ncode := int(in.take(5))+257, int(in.take(5))+1, int(in.take(4))+4
	if nlit > maxLit || ndist > maxDist {
		return false, corrupt("number of codes")
	}
	var codeLens [19]uint8
	for i := range ncode {
		if !in.need(3) {
			return false, nil
		}
		codeLens[codeOrder[i]] = uint8(in.take(3))
	}
	var codes [1 << codeBits]uint32
	if !build(codes[:], codeBits, codeSymbols[:], codeLens[:]) {
		return false, corrupt("code for code lengths")
	}

	lens := d.lens[:nlit+ndist]
	for i := 0; i < len(lens); {
		// A code and its extra bits take at most 14 bits. At the end of the
		// input fewer may be enough.
		in.need(codeBits + 7)
		e := codes[in.hold&(1<<in.n-1)&(1<<codeBits-1)]
		n := uint(e & 0xff)
		if e == invalid {
			if in.n < codeBits {
				return false, nil
			}
			return false, corrupt("code length")
		}
		if in.n < n {
			return false, nil
		}
		sym := uint8(e >> 16)
		if sym < 16 {
			in.take(n)
			lens[i] = sym
			i++
			continue
		}
		extra, base := uint(2), 3 // 16: the last length 3 to 6 times
		switch sym {
		case 17: // 3 to 10 zeros
			extra = 3
		case 18: // 11 to 138 zeros
			extra, base = 7, 11
		}
		if in.n < n+extra {
			return false, nil
		}
		in.take(n)
		times := base + int(in.take(extra))
		value := uint8(0)
		if sym == 16 {
			if i == 0 {
				return false, corrupt("repeats the code length before the first")
			}
			value = lens[i-1]
		}
		if times > len(lens)-i {
			return false, corrupt("too many code lengths")
		}
		for range times {
			lens[i] = value
			i++
		}
	}

	d.fixed = false
	if !buildLit(&d.lit, lens[:nlit]) {
		return false, corrupt("literal and length code")
	}
	if !build(d.dist[:], distBits, distSymbols[:], lens[nlit:]) {
		return false, corrupt("distance code")
	}
	return true, nil
}
