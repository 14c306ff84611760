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
	litBits  = 12
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
	var b builder
	if !b.sort(lens) {
		return false
	}
	b.fill(table, primary, symbols, 0)
	return true
}

// buildLit fills a table of literals and lengths, as build does.
func buildLit(table *litTable, lens []uint8) bool {
	var b builder
	if !b.sort(lens) {
		return false
	}
	b.fill(table[:], litBits, litSymbols[:], 256)
	return true
}

// builder holds a code while its table is made.
type builder struct {
	count  [maxCode + 2]uint32 // codes of each length
	first  [maxCode + 2]uint32 // the place in sorted of the first code of each length
	next   [maxCode + 2]uint32 // the first code of each length
	sorted [288]uint16         // symbols in the order of their codes
	codes  [288]uint16         // their codes as they come: mirrored; up to the primary bits
}

// sort puts the symbols in the order of their codes. It reports false for what
// is no code.
func (b *builder) sort(lens []uint8) bool {
	for _, n := range lens {
		b.count[n&maxCode]++
	}
	b.count[0] = 0
	code := uint32(0)
	for n := 1; n <= maxCode; n++ {
		b.next[n] = code
		b.first[n+1] = b.first[n] + b.count[n]
		code = (code + b.count[n]) << 1
		if code > 2<<n {
			return false // over-subscribed
		}
	}
	if code != 2<<maxCode {
		// Incomplete: only an unused or a single code may be.
		if used := b.first[maxCode+1]; used > 1 || used == 1 && b.count[1] != 1 {
			return false
		}
	}
	at := b.first
	for sym, n := range lens {
		if n &= maxCode; n != 0 {
			b.sorted[at[n]] = uint16(sym)
			at[n]++
		}
	}
	return true
}

// fill makes the table. Pairs are made of literals, which are the symbols below
// lits.
func (b *builder) fill(table []uint32, primary uint, symbols []uint32, lits uint16) {
	// The table of n bits is that of n-1 bits twice, with the codes of n bits
	// put in. Where nothing comes to lie there is no code.
	table[0] = invalid
	var litEnd [maxCode + 1]uint32 // the end in sorted of each length's literals
	for n := uint(1); n <= primary; n++ {
		half := 1 << (n - 1)
		copy(table[half:2*half], table[:half])
		litEnd[n] = b.first[n]
		code := b.next[n]
		for i := b.first[n]; i < b.first[n+1]; i++ {
			c := reverse(code, n)
			code++
			b.codes[i] = uint16(c)
			table[c] = entry(symbols[b.sorted[i]], n)
			if b.sorted[i] < lits {
				litEnd[n] = i + 1
			}
		}
		for k := uint(1); k < n; k++ {
			// Literals of k bits, and behind them literals of n-k bits.
			second, end := b.first[n-k], litEnd[n-k]
			if second == end {
				continue
			}
			for i := b.first[k]; i < litEnd[k]; i++ {
				e := flagLiteral | 2*oneByte | uint32(k)<<10 | uint32(n) | uint32(b.sorted[i])<<16
				for j := second; j < end; j++ {
					table[uint(b.codes[i])|uint(b.codes[j])<<k] = e | uint32(b.sorted[j])<<24
				}
			}
		}
	}

	// Long codes: those with the same primary bits follow one another.
	sub := uint32(1) << primary
	subSize := uint32(1) << (maxCode - primary)
	last, base := ^uint32(0), uint32(0)
	for n := primary + 1; n <= maxCode; n++ {
		code := b.next[n]
		for i := b.first[n]; i < b.first[n+1]; i++ {
			r := reverse(code, n)
			code++
			low := r & (1<<primary - 1)
			if low != last {
				last, base = low, sub
				table[low] = flagSpecial | flagSub | base<<16 | uint32(primary)
				sub += subSize
			}
			e := entry(symbols[b.sorted[i]], n-primary)
			for j := r >> primary; j < subSize; j += 1 << (n - primary) {
				table[base+j] = e
			}
		}
	}
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
