package inflate

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"
)

// header is a gzip header with the parts that the flags name.
func header(flags byte, parts ...string) []byte {
	h := []byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255}
	for _, p := range parts {
		h = append(h, p...)
	}
	if flags&flagHeaderCRC != 0 {
		h = binary.LittleEndian.AppendUint16(h, uint16(crc32.ChecksumIEEE(h)))
	}
	return h
}

func TestHeader(t *testing.T) {
	badCRC := header(flagHeaderCRC)
	badCRC[len(badCRC)-1] ^= 1
	tests := []struct {
		name string
		in   []byte
		err  error
	}{
		{"plain", header(0), nil},
		{"extra", header(flagExtra, "\x03\x00abc"), nil},
		{"name", header(flagName, "name\x00"), nil},
		{"comment", header(flagComment, "comment\x00"), nil},
		{"crc", header(flagHeaderCRC), nil},
		{"all", header(flagExtra|flagName|flagComment|flagHeaderCRC, "\x01\x00a", "n\x00", "\x00"),
			nil},
		{"longest extra", header(flagExtra|flagName, "\xff\xff"+strings.Repeat("e", 0xffff),
			"n\x00"), nil},
		{"reserved flag", header(0x20), nil},
		{"method", []byte{0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 0}, ErrHeader},
		{"magic", []byte("hello"), ErrHeader},
		{"wrong crc", badCRC, ErrHeader},
		{"name without end", header(flagName, strings.Repeat("n", maxHeader)), ErrHeader},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := Header(append(bytes.Clone(tt.in), "rest"...))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			if n != len(tt.in) {
				t.Fatalf("length %d, want %d", n, len(tt.in))
			}
			for i := range tt.in {
				if _, err := Header(tt.in[:i]); !errors.Is(err, ErrShort) {
					t.Fatalf("%d bytes of %d: error %v", i, n, err)
				}
			}
		})
	}
}

// FuzzHeader compares with compress/gzip, which accepts the same but for names
// and comments that are longer than 511 bytes.
func FuzzHeader(f *testing.F) {
	f.Add(header(flagExtra|flagName|flagComment|flagHeaderCRC, "\x01\x00a", "n\x00", "\x00"))
	f.Add(header(0))
	f.Fuzz(func(t *testing.T, src []byte) {
		n, err := Header(src)
		if n > len(src) {
			t.Fatalf("length %d of %d", n, len(src))
		}
		in := bytes.NewReader(src)
		_, wantErr := gzip.NewReader(in)
		if wantErr == nil {
			if err != nil || n != len(src)-in.Len() {
				t.Fatalf("length %d, %v; want %d", n, err, len(src)-in.Len())
			}
		} else if err == nil && n < 512 {
			t.Fatalf("accepted; compress/gzip says %v", wantErr)
		}
	})
}
