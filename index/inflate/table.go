package inflate

// A table maps the next bits of the input to what they mean. The first lookup
// takes the primary bits; codes longer than that go on in a subtable of the
// remaining bits. An entry is
//
//	bits 0-7    how many bits of input it takes: code and extra bits
//	bits 8-12   how many of them are code (lengths and distances)
//	bits 8-9    literals: how many bytes it is, 1 or 2
//	bits 10-13  two literals: how many bits the first one takes
//	bit  13     special: it is a subtable; bits 16-31 are its first index
//	bit  14     special: subtable, end of block, or no code at all
//	bit  15     literal
//	bits 16-31  base of a length or distance; the bytes of literals
//
// The primary entry of two literals whose codes fit into it together holds both.
const (
	litBits  = 11
	distBits = 9
	maxCode  = 15

	// A complete code has at least two codes in each subtable, and at most
	// 288 (32) codes: never more than 144 (16) subtables.
	litSub   = 1 << (maxCode - litBits)
	distSub  = 1 << (maxCode - distBits)
	litSize  = 1<<litBits + 144*litSub
	distSize = 1<<distBits + 16*distSub

	flagSub     = 1 << 13
	flagSpecial = 1 << 14
	flagLiteral = 1 << 15
	oneByte     = 1 << 8

	// The codes that a dynamic block may define (RFC 1951, 3.2.7); the
	// fixed code has two symbols more of each kind, which must not occur.
	maxLit     = 286
	maxDist    = 30
	endOfBlock = 256

	// invalid is the entry of bits that are no code, told from the end of a
	// block by its bits 16-31.
	invalid = flagSpecial | 1<<16
)

type (
	litTable  [litSize]uint32
	distTable [distSize]uint32
)

// litSymbols and distSymbols are the entries of the symbols, without their codes.
var (
	litSymbols  = makeLitSymbols()
	distSymbols = makeDistSymbols()
)

func makeLitSymbols() (t [288]uint32) {
	for i := range 256 {
		t[i] = flagLiteral | oneByte | uint32(i)<<16
	}
	t[endOfBlock] = flagSpecial
	// Lengths: 8 codes without extra bits, then groups of four with one extra
	// bit more in each, from 3 on; the last code is 258 alone.
	base := uint32(3)
	for i := range uint32(28) {
		extra := uint32(0)
		if i >= 8 {
			extra = i/4 - 1
		}
		t[257+i] = base<<16 | extra
		base += 1 << extra
	}
	t[285] = 258 << 16
	t[286], t[287] = invalid, invalid
	return t
}

func makeDistSymbols() (t [32]uint32) {
	base := uint32(1)
	for i := range uint32(30) {
		extra := uint32(0)
		if i >= 4 {
			extra = i/2 - 1
		}
		t[i] = base<<16 | extra
		base += 1 << extra
	}
	t[30], t[31] = invalid, invalid
	return t
}

// build fills a table from the code lengths of its symbols. It accepts what
// zlib accepts: complete codes, no code at all, and a single code of one bit.
func build(table []uint32, primary uint, symbols []uint32, lens []uint8) bool {
	var count [maxCode + 1]uint32
	for _, n := range lens {
		count[n&maxCode]++
	}
	count[0] = 0
	var next [maxCode + 2]uint32 // the first code of each length
	var at [maxCode + 2]uint32   // the first place of each length in sorted
	code, used := uint32(0), uint32(0)
	for n := 1; n <= maxCode; n++ {
		next[n] = code
		at[n+1] = at[n] + count[n]
		used += count[n]
		code = (code + count[n]) << 1
		if code > 2<<n {
			return false // over-subscribed
		}
	}
	if code != 2<<maxCode {
		// Incomplete: only an unused or a single code may be.
		if used > 1 || used == 1 && count[1] != 1 {
			return false
		}
		for i := range table[:1<<primary] {
			table[i] = invalid
		}
	}
	var sorted [288]uint16
	for sym, n := range lens {
		if n &= maxCode; n != 0 {
			sorted[at[n]] = uint16(sym)
			at[n]++
		}
	}

	i := uint32(0)
	for n := uint(1); n <= primary; n++ {
		for c := next[n]; c < next[n]+count[n]; c++ {
			e := entry(symbols[sorted[i]], n)
			i++
			for j := int(reverse(c, n)); j < 1<<primary; j += 1 << n {
				table[j] = e
			}
		}
	}
	// Long codes: those with the same primary bits follow one another.
	sub := uint32(1) << primary
	subSize := uint32(1) << (maxCode - primary)
	last, base := ^uint32(0), uint32(0)
	for n := primary + 1; n <= maxCode; n++ {
		for c := next[n]; c < next[n]+count[n]; c++ {
			r := reverse(c, n)
			low := r & (1<<primary - 1)
			if low != last {
				last, base = low, sub
				table[low] = flagSpecial | flagSub | base<<16 | uint32(primary)
				sub += subSize
			}
			e := entry(symbols[sorted[i]], n-primary)
			i++
			for j := r >> primary; j < subSize; j += 1 << (n - primary) {
				table[base+j] = e
			}
		}
	}
	return true
}

// entry is the entry of a symbol whose code has n bits (left).
func entry(symbol uint32, n uint) uint32 {
	switch {
	case symbol == invalid:
		return symbol
	case symbol&(flagLiteral|flagSpecial) != 0:
		return symbol + uint32(n)
	}
	return symbol + uint32(n)<<8 + uint32(n)
}

// pair joins the primary entries of two literals that fit into one lookup. The
// entry of what follows the first literal has a lower index, except for index
// 0: going downwards, it is still single.
func pair(table *litTable) {
	for i := uint32(1<<litBits - 1); ; i-- {
		e := table[i]
		if e&flagLiteral != 0 {
			n := e & 0xff
			f := table[i>>n]
			if f&flagLiteral != 0 && n+f&0xff <= litBits {
				table[i] = flagLiteral | 2*oneByte | n<<10 | (n + f&0xff) | e&0xff0000 | f<<8&0xff000000
			}
		}
		if i == 0 {
			return
		}
	}
}
