// Package nastytar makes tars that are hard to unpack right: what tar's dialects,
// image builders and attackers put into layers. It is for tests, which compare what
// becomes of a tar with what containerd makes of it.
//
// A tar is made of entries; All returns the ones with a name. Everything is
// deterministic.
package nastytar

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"time"
)

// Entry writes one entry.
type Entry func(*bytes.Buffer)

// Option changes an entry's header.
type Option func(*tar.Header)

// blockSize is the size of a tar block.
const blockSize = 512

// Of returns the tar with the given entries and an end marker.
func Of(entries ...Entry) []byte {
	return append(Unended(entries...), make([]byte, 2*blockSize)...)
}

// Unended returns the entries without an end marker.
func Unended(entries ...Entry) []byte {
	var b bytes.Buffer
	for _, e := range entries {
		e(&b)
	}
	return b.Bytes()
}

func entry(h tar.Header, data string, options []Option) Entry {
	return func(b *bytes.Buffer) {
		h := h // an entry can be written twice
		h.PAXRecords = nil
		for _, o := range options {
			o(&h)
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(data))
		}
		w := tar.NewWriter(b)
		err := w.WriteHeader(&h)
		if err == nil && data != "" {
			_, err = w.Write([]byte(data))
		}
		if err == nil {
			err = w.Flush()
		}
		if err != nil {
			panic(fmt.Sprintf("nastytar: entry %q: %v", h.Name, err))
		}
	}
}

// epoch is the time of entries that do not ask for another.
var epoch = time.Unix(1_600_000_000, 0)

// File is a regular file with mode 0644.
func File(name, data string, o ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: epoch}, data,
		o)
}

// Dir is a directory with mode 0755.
func Dir(name string, o ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: epoch}, "", o)
}

// Symlink is a symbolic link.
func Symlink(name, target string, o ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777,
		ModTime: epoch}, "", o)
}

// Link is a hard link, with the attributes that File has.
func Link(name, target string, o ...Option) Entry {
	return entry(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644,
		ModTime: epoch}, "", o)
}

// Device is a character or block device (type '3' or '4') or a FIFO ('6').
func Device(name string, typ byte, major, minor int64, o ...Option) Entry {
	return entry(tar.Header{Typeflag: typ, Name: name, Devmajor: major, Devminor: minor,
		Mode: 0o600, ModTime: epoch}, "", o)
}

// Global is a global PAX header with a record that means nothing.
func Global(name string) Entry {
	return entry(tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: name}, "",
		[]Option{func(h *tar.Header) { h.PAXRecords = map[string]string{"comment": "nothing"} }})
}

// Mode sets the permission bits.
func Mode(m int64) Option { return func(h *tar.Header) { h.Mode = m } }

// Owner sets uid and gid.
func Owner(uid, gid int) Option { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }

// Mtime sets the modification time; with parts of a second, the header becomes PAX.
func Mtime(sec, nsec int64) Option {
	return func(h *tar.Header) {
		h.ModTime = time.Unix(sec, nsec)
		if nsec != 0 {
			h.Format = tar.FormatPAX
		}
	}
}

// Xattr adds an extended attribute.
func Xattr(key, value string) Option { return record("SCHILY.xattr."+key, value) }

// record adds a PAX record.
func record(key, value string) Option {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[key] = value
	}
}

// Format sets the header's format.
func Format(f tar.Format) Option { return func(h *tar.Header) { h.Format = f } }

// Raw is a header block that package archive/tar does not write, followed by the
// data. Its size is the data's.
type Raw struct {
	Name, Target string
	Type         byte
	Magic        string // "ustar\x0000" for ustar and PAX, "ustar  \x00" for GNU, "" for V7
	Data         string
	UID          [8]byte // zero: 0; and so on
	Mtime        [12]byte
	Size         int64          // instead of the data's, if not zero
	Patch        map[int]string // bytes at an offset of the block
}

// The magics of the formats.
const (
	magicUSTAR = "ustar\x0000"
	magicGNU   = "ustar  \x00"
)

// Entry writes the block with the right checksum, and the data.
func (r Raw) Entry(b *bytes.Buffer) {
	var h [blockSize]byte
	copy(h[:100], r.Name)
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[108:116], nonzero(r.UID[:], "0000000\x00"))
	copy(h[116:], "0000000\x00")
	size := r.Size
	if size == 0 {
		size = int64(len(r.Data))
	}
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	copy(h[136:148], nonzero(r.Mtime[:], "13727410000\x00"))
	h[156] = r.Type
	copy(h[157:257], r.Target)
	copy(h[257:], r.Magic)
	for at, s := range r.Patch {
		copy(h[at:], s)
	}
	copy(h[148:156], strings.Repeat(" ", 8))
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	b.Write(h[:])
	b.WriteString(r.Data)
	b.Write(make([]byte, -len(r.Data)&(blockSize-1)))
}

func nonzero(b []byte, s string) string {
	if strings.Trim(string(b), "\x00") == "" {
		return s
	}
	return string(b)
}

// PAX is an extended header with the records in the given order: key, value, key,
// value.
func PAX(records ...string) Entry {
	var data strings.Builder
	for i := 0; i < len(records); i += 2 {
		rest := " " + records[i] + "=" + records[i+1] + "\n"
		n := len(rest) + 1
		for len(fmt.Sprint(n))+len(rest) != n {
			n++
		}
		fmt.Fprint(&data, n, rest)
	}
	return Raw{Name: "PaxHeaders/x", Type: 'x', Magic: magicUSTAR, Data: data.String()}.Entry
}
