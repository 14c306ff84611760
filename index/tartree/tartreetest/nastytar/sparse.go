package nastytar

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Piece is a range of a sparse file that is not a hole.
type Piece struct {
	Off  int64
	Data string
}

func dense(pieces []Piece) string {
	var b strings.Builder
	for _, p := range pieces {
		b.WriteString(p.Data)
	}
	return b.String()
}

func entries(e ...Entry) Entry {
	return func(b *bytes.Buffer) {
		for _, e := range e {
			e(b)
		}
	}
}

// Sparse00 is a sparse file of GNU's PAX format 0.0.
func Sparse00(name string, size int64, pieces ...Piece) Entry {
	records := []string{"GNU.sparse.size", fmt.Sprint(size), "GNU.sparse.numblocks",
		fmt.Sprint(len(pieces))}
	for _, p := range pieces {
		records = append(records, "GNU.sparse.offset", fmt.Sprint(p.Off), "GNU.sparse.numbytes",
			fmt.Sprint(len(p.Data)))
	}
	return entries(PAX(records...),
		Raw{Name: name, Type: '0', Magic: magicUSTAR, Data: dense(pieces)}.Entry)
}

// Sparse01 is a sparse file of GNU's PAX format 0.1.
func Sparse01(name string, size int64, pieces ...Piece) Entry {
	var m []string
	for _, p := range pieces {
		m = append(m, fmt.Sprint(p.Off), fmt.Sprint(len(p.Data)))
	}
	return entries(PAX("GNU.sparse.size", fmt.Sprint(size), "GNU.sparse.numblocks",
		fmt.Sprint(len(pieces)),
		"GNU.sparse.map", strings.Join(m, ","), "GNU.sparse.name", name),
		Raw{Name: "GNUSparseFile.0/x", Type: '0', Magic: magicUSTAR, Data: dense(pieces)}.Entry)
}

// Sparse10 is a sparse file of GNU's PAX format 1.0.
func Sparse10(name string, size int64, pieces ...Piece) Entry {
	m := fmt.Sprintln(len(pieces))
	for _, p := range pieces {
		m += fmt.Sprintf("%d\n%d\n", p.Off, len(p.Data))
	}
	m += strings.Repeat("\x00", -len(m)&(blockSize-1))
	return entries(PAX("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", name,
		"GNU.sparse.realsize", fmt.Sprint(size)),
		Raw{Name: "GNUSparseFile.0/x", Type: '0', Magic: magicUSTAR, Data: m + dense(pieces)}.Entry)
}

// SparseOld is a sparse file of the old GNU format (type S). containerd refuses it.
func SparseOld(name string, size int64, pieces ...Piece) Entry {
	const inHeader, inBlock, mapAt, flagAt, sizeAt = 4, 21, 386, 482, 483
	list := func(p []Piece) (s string) {
		for _, p := range p {
			s += fmt.Sprintf("%011o\x00%011o\x00", p.Off, len(p.Data))
		}
		return s
	}
	octal := strconv.FormatInt(size, 8)
	head := Raw{Name: name, Type: 'S', Magic: magicGNU, Size: int64(len(dense(pieces))),
		Patch: map[int]string{
			mapAt:  list(pieces[:min(inHeader, len(pieces))]),
			sizeAt: strings.Repeat("0", 11-len(octal)) + octal + "\x00",
		}}
	rest := pieces[min(inHeader, len(pieces)):]
	if len(rest) > 0 {
		head.Patch[flagAt] = "\x01"
	}
	return func(b *bytes.Buffer) {
		head.Entry(b)
		for len(rest) > 0 {
			var block [blockSize]byte
			n := min(inBlock, len(rest))
			copy(block[:], list(rest[:n]))
			if rest = rest[n:]; len(rest) > 0 {
				block[504] = 1
			}
			b.Write(block[:])
		}
		data := dense(pieces)
		b.WriteString(data)
		b.Write(make([]byte, -len(data)&(blockSize-1)))
	}
}
