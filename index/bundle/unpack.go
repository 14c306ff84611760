package bundle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// readColumns reads what columns.write wrote, to the end of r.
func readColumns(r io.Reader) (*columns, error) {
	var sizes [4 * columnCount]byte
	if _, err := io.ReadFull(r, sizes[:]); err != nil {
		return nil, cutOff(err)
	}
	total := int64(0)
	for i := range columnCount {
		total += int64(binary.LittleEndian.Uint32(sizes[4*i:]))
	}
	if total > maxPacked {
		return nil, corrupt("packed index of %d bytes, at most %d wanted", total, maxPacked)
	}
	var all bytes.Buffer
	all.Grow(int(min(total, 4<<20)) + bytes.MinRead) // that much at once, not more: the size may be a lie
	if n, err := io.Copy(&all, io.LimitReader(r, total+1)); err != nil {
		return nil, err
	} else if n != total {
		return nil, corrupt("packed index: columns of %d bytes in %d or more", total, n)
	}
	var c columns
	for i := range c {
		c[i] = all.Next(int(binary.LittleEndian.Uint32(sizes[4*i:])))
	}
	return &c, nil
}

// cutOff makes the error of bytes that end too early one of ErrCorrupt.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("packed index: cut off")
	}
	return err
}

// unpack writes the index file of size bytes that columns stand for, and returns its header. What
// it returns no error for, index.Check accepts.
func unpack(w io.Writer, c *columns, size int64) (*index.FileHeader, error) {
	h, err := index.DecodeHeader(c[colHeader], size)
	if err != nil {
		return nil, err
	}
	a := newArena()
	defer a.release()
	u := newUnpacker(c, a)
	d, err := u.draft()
	if err != nil {
		return nil, err
	}
	if err := h.Restore(w, d); err != nil {
		return nil, fmt.Errorf("packed index: %w", err)
	}
	return h, u.atEnd()
}

// unpacker reads columns from their beginning to their end. After an error all that it reads is
// zero.
type unpacker struct {
	in      columns
	err     error
	names   string // what is left of that column: parts of it are the names
	nodes   []*erofs.Node
	arena   *arena        // for further ones
	list    []erofs.Entry // of one directory
	kinds   []kind
	moments []moment
	end     int64 // in the device, of the file before
}

// newUnpacker returns an unpacker for all columns but the header. The nodes and extents that it
// makes are of a, which the caller releases after the draft's use.
func newUnpacker(c *columns, a *arena) *unpacker {
	files := min(len(c[colEntries]), maxPackedFiles) // about
	u := &unpacker{in: *c, arena: a, names: string(c[colNames]),
		nodes: make([]*erofs.Node, 0, files)}
	u.in[colHeader], u.in[colNames] = nil, nil
	return u
}

// draft returns a draft that reads the tree from the columns while it is written, which is why it
// can be written once.
func (u *unpacker) draft() (*index.Draft, error) {
	d := &index.Draft{Spans: u.spans(), Root: u.root(), Entries: u.links}
	return d, u.err
}

// atEnd says whether all columns were read to their end.
func (u *unpacker) atEnd() error {
	for i, c := range u.in {
		if len(c) > 0 || len(u.names) > 0 {
			return corrupt("packed index: bytes are left over (column %d)", i)
		}
	}
	return nil
}

// fail keeps the first error.
func (u *unpacker) fail(format string, args ...any) {
	if u.err == nil {
		u.err = corrupt("packed index: "+format, args...)
	}
}

func (u *unpacker) bytes(col int, n uint64) []byte {
	c := u.in[col]
	if u.err != nil || n > uint64(len(c)) {
		u.fail("column %d is cut off", col)
		return nil
	}
	u.in[col] = c[n:]
	return c[:n:n]
}

func (u *unpacker) uvarint(col int) uint64 {
	v, n := binary.Uvarint(u.in[col])
	if u.err != nil || n <= 0 {
		u.fail("column %d is cut off", col)
		return 0
	}
	u.in[col] = u.in[col][n:]
	return v
}

// size reads a number that is at most limit.
func (u *unpacker) size(col int, limit uint64) int64 {
	v := u.uvarint(col)
	if v > limit {
		u.fail("%d in column %d, at most %d wanted", v, col, limit)
		return 0
	}
	return int64(v)
}

// step reads a signed number whose magnitude is at most limit.
func (u *unpacker) step(col int, limit int64) int64 {
	v, n := binary.Varint(u.in[col])
	if u.err != nil || n <= 0 || v < -limit || v > limit {
		u.fail("column %d is cut off or has a number of more than %d", col, limit)
		return 0
	}
	u.in[col] = u.in[col][n:]
	return v
}

func (u *unpacker) text(col int) string {
	text, rest, ok := bytes.Cut(u.in[col], []byte{0})
	if u.err != nil || !ok {
		u.fail("column %d is cut off", col)
		return ""
	}
	u.in[col] = rest
	return string(text)
}

func (u *unpacker) root() *erofs.Node {
	n := u.entry()
	if n != nil && n.Mode&unix.S_IFMT != unix.S_IFDIR {
		u.fail("the root is not a directory")
	}
	return n
}

// name reads a name.
func (u *unpacker) name() string {
	name, rest, ok := strings.Cut(u.names, "\x00")
	if !ok {
		u.fail("column %d is cut off", colNames)
		return ""
	}
	u.names = rest
	return name
}

// links reads the entries of a directory: it is a draft's Entries, which checks them.
func (u *unpacker) links(*erofs.Node) ([]erofs.Entry, error) {
	u.list = u.list[:0]
	for {
		name := u.name()
		if name == "" || u.err != nil {
			// The writer adds two.
			return append(make([]erofs.Entry, 0, len(u.list)+2), u.list...), u.err
		}
		n := u.entry()
		if u.err != nil {
			return nil, u.err
		}
		u.list = append(u.list, erofs.Entry{Name: name, Node: n})
	}
}

// entry reads what an entry stands for.
func (u *unpacker) entry() *erofs.Node {
	number := u.uvarint(colEntries)
	switch {
	case u.err != nil:
		return nil
	case number == 0:
		return u.earlier()
	case number == uint64(len(u.kinds))+1:
		if b := u.bytes(colKinds, kindSize); b != nil {
			u.kinds = append(u.kinds, decodeKind(b))
		}
	}
	if number > uint64(len(u.kinds)) {
		u.fail("kind %d of %d", number, len(u.kinds))
		return nil
	}
	if len(u.nodes) == maxPackedFiles {
		u.fail("more than %d files", maxPackedFiles)
		return nil
	}
	n := u.file(u.kinds[number-1])
	u.nodes = append(u.nodes, n)
	return n
}

// earlier reads which file another name is for. That it is no directory the writer checks.
func (u *unpacker) earlier() *erofs.Node {
	back := u.uvarint(colLinks)
	if back == 0 || back > uint64(len(u.nodes)) {
		u.fail("link to the file %d before, of %d", back, len(u.nodes))
		return nil
	}
	return u.nodes[uint64(len(u.nodes))-back]
}

// file reads a file of a kind.
func (u *unpacker) file(k kind) *erofs.Node {
	n := &u.arena.nodes.next()[0]
	*n = erofs.Node{Mode: uint32(k.mode), UID: k.uid, GID: k.gid, Mtime: u.time(),
		Implicit: k.flags&kindImplicit != 0}
	typ := n.Mode & unix.S_IFMT
	if k.flags&^kindFlags != 0 || n.Implicit && typ != unix.S_IFDIR || k.flags&kindPieces != 0 &&
		typ != unix.S_IFREG {
		u.fail("flags %#x with mode %#o", k.flags, n.Mode)
	}
	if k.flags&kindXattrs != 0 {
		u.xattrs(n)
	}
	switch typ {
	case unix.S_IFREG:
		n.Size = u.size(colNumbers, maxFile)
		if k.flags&kindPieces != 0 {
			u.pieces(n)
		} else if n.Size > 0 {
			u.place(n)
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = uint64(u.size(colNumbers, 1<<32-1))
	case unix.S_IFLNK:
		n.Target = u.text(colTargets)
	}
	return n
}

func (u *unpacker) time() time.Time {
	number := u.uvarint(colTimes)
	if number == uint64(len(u.moments)) && u.err == nil {
		m := moment{}
		if number > 0 {
			m = u.moments[number-1]
		}
		m.sec += u.step(colMoments, 1<<62) // who has the sum overflow gets another time
		m.nsec = uint32(u.size(colMoments, 1e9-1))
		u.moments = append(u.moments, m)
	}
	if number >= uint64(len(u.moments)) {
		u.fail("mtime %d of %d", number, len(u.moments))
		return time.Time{}
	}
	m := u.moments[number]
	return time.Unix(m.sec, int64(m.nsec))
}

func (u *unpacker) xattrs(n *erofs.Node) {
	n.Xattrs = map[string]string{}
	for left := u.uvarint(colXattrs); left > 0 && u.err == nil; left-- {
		name := u.text(colXattrs)
		n.Xattrs[name] = string(u.bytes(colXattrs, u.uvarint(colXattrs)))
	}
}

func (u *unpacker) place(n *erofs.Node) {
	at := u.end + (1+u.step(colPlaces, maxBlocks))*erofs.BlockSize
	if at < 0 || at > erofs.MaxDevice {
		u.fail("file at %d", at)
		return
	}
	n.Extents = u.arena.extents.next()
	// The writer checks whether the device has that much.
	n.Extents[0] = erofs.Extent{Device: at, Size: n.Size}
	u.end = alignUp(at + n.Size)
}

func (u *unpacker) pieces(n *erofs.Node) {
	end := int64(0)
	for left := u.uvarint(colPieces); left > 0 && u.err == nil; left-- {
		hole := u.size(colPieces, maxFile/erofs.BlockSize) * erofs.BlockSize
		e := erofs.Extent{File: end + hole, Size: u.size(colPieces, maxFile)}
		switch u.size(colPieces, 1) {
		case 0:
			e.Device = u.size(colPieces, maxBlocks) * erofs.BlockSize
		case 1:
			e.Data = u.bytes(colPieces, uint64(e.Size))
		}
		if e.Size == 0 || e.File > n.Size {
			u.fail("piece of %d bytes at %d of %d", e.Size, e.File, n.Size)
			return
		}
		n.Extents = append(n.Extents, e)
		end = alignUp(e.File + e.Size)
	}
}

func (u *unpacker) spans() []index.Span {
	const limit = 1 << 60
	var spans []index.Span
	device, blob, window := int64(0), int64(0), int64(0)
	for len(u.in[colSpans]) > 0 && u.err == nil {
		s := index.Span{Device: device, Size: u.size(colSpans, index.MaxSpanSize)}
		s.Blob = blob + u.step(colSpans, limit)
		s.BlobSize = u.size(colSpans, index.MaxSpanSize)
		form := u.size(colSpans, 1<<8-1)
		stated := form&digestUnstated == 0
		form &^= digestUnstated
		s.Codec, s.Bit = index.Codec(form>>3), uint8(form&7)
		s.Window.Size = u.size(colSpans, index.MaxWindowSize)
		copy(s.Digest[:], u.bytes(colDigests, uint64(len(s.Digest))))
		if s.Window.Size > 0 {
			s.Window.Off = window + u.step(colSpans, limit)
			window = s.Window.Off + s.Window.Size
			if stated {
				copy(s.WindowDigest[:], u.bytes(colDigests, uint64(len(s.WindowDigest))))
			}
		}
		device, blob = device+s.Size, s.Blob+s.BlobSize
		spans = append(spans, s)
	}
	return spans
}
