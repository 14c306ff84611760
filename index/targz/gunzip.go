package targz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/inflate"
	"github.com/mica-snapshotter/mica/index/window"
)

// gunzipper decodes a blob of gzip members and cuts it into spans.
type gunzipper struct {
	in  *input
	out *output
	src []byte // what is read of the blob and not decoded
	at  int64  // offset of src in the blob

	d   inflate.Decoder
	cut cutter

	buf   *buffer
	w     int   // the next byte of buf.mem
	first int64 // device offset of buf.data()[0]
	held  []piece
	sent  int64 // device offset up to which pieces are sent

	member int64 // device offset where the member's content begins
	crc    uint32

	spans *[]index.Span
}

// gunzip is the inflating goroutine of a scan.
func gunzip(in *input, out *output, spans *[]index.Span) error {
	g := &gunzipper{in: in, out: out, spans: spans, w: window.Size}
	g.cut.size = out.o.SpanSize
	g.d.StopAtBlocks = true
	var err error
	if g.buf, err = out.get(); err != nil {
		return err
	}
	*spans = append(*spans, index.Span{Codec: index.Gzip})
	if err := out.sendWindow(nil); err != nil {
		return err
	}
	for first := true; ; first = false {
		more, err := g.header(first)
		if err != nil {
			return err
		}
		if !more {
			return g.finish()
		}
		if err := g.content(); err != nil {
			return err
		}
		if err := g.trailer(); err != nil {
			return err
		}
	}
}

// device is the offset of the next byte in the device.
func (g *gunzipper) device() int64 { return g.first + int64(g.w-window.Size) }

// index is where a device offset lies in buf.mem.
func (g *gunzipper) index(device int64) int { return int(device-g.first) + window.Size }

// more reads on; a blob that ends here is truncated.
func (g *gunzipper) more() (err error) {
	g.src, err = g.in.more(g.src)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: ends at %d within a gzip member", ErrCorrupt, g.at+int64(len(g.src)))
	}
	return err
}

func (g *gunzipper) skip(n int) {
	g.src = g.src[n:]
	g.at += int64(n)
}

// header reads the header of a member. It reports false at the end of the blob.
// Zeros may follow the last member, as gzip(1) has it; anything else is an error,
// as for compress/gzip.
func (g *gunzipper) header(first bool) (bool, error) {
	if len(g.src) == 0 {
		var err error
		if g.src, err = g.in.more(nil); errors.Is(err, io.EOF) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		if len(g.src) == 0 {
			return false, nil
		}
	}
	if !first && g.src[0] == 0 {
		return false, g.padding()
	}
	start := g.at
	for {
		n, err := inflate.Header(g.src)
		if err == nil {
			g.skip(n)
			break
		}
		if !errors.Is(err, inflate.ErrShort) {
			return false, fmt.Errorf("%w: %w at %d", ErrCorrupt, err, g.at)
		}
		if err := g.more(); err != nil {
			return false, err
		}
	}
	g.member = g.device()
	g.cut.endMember()
	if g.cut.wants(g.member, true) {
		g.cut.add(place{device: g.member, blob: start, member: true}, nil)
	}
	return true, nil
}

// padding reads zeros to the end of the blob.
func (g *gunzipper) padding() error {
	for {
		for i, b := range g.src {
			if b != 0 {
				return fmt.Errorf("%w: garbage behind the last gzip member at %d", ErrCorrupt, g.at+int64(i))
			}
		}
		g.skip(len(g.src))
		var err error
		if g.src, err = g.in.more(nil); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// content decodes the deflate stream of a member.
func (g *gunzipper) content() error {
	g.d.Reset(0)
	g.crc = 0
	for {
		status, err := g.decode()
		if err != nil {
			return err
		}
		if err := g.advance(); err != nil {
			return err
		}
		switch status {
		case inflate.NeedInput:
			err = g.more()
		case inflate.OutputFull:
			err = g.flush()
		case inflate.BlockStart:
			g.block()
		case inflate.StreamEnd:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// decode goes on to the next stop.
func (g *gunzipper) decode() (inflate.Status, error) {
	mem := g.buf.mem[:]
	// What the member has written of buf.mem so far is history. While a
	// candidate is live the output begins with it, so that whatever
	// refers to the bytes before it is seen.
	low := max(0, g.index(g.member))
	from := low
	g.d.Track = len(g.cut.live) > 0
	if g.d.Track {
		from = g.index(g.cut.live[len(g.cut.live)-1].device)
	}
	g.d.SetHistory(mem[low:from])
	g.d.Refs = g.d.Refs[:0]
	w, r, status, err := g.d.Decode(mem[from:], g.w-from, g.src)
	if err != nil {
		return status, fmt.Errorf("%w: in the blob from %d on: %w", ErrCorrupt, g.at, err)
	}
	g.skip(r)
	g.crc = crc32.Update(g.crc, crc32.IEEETable, mem[g.w:from+w])
	g.w = from + w
	g.cut.refer(g.d.Refs)
	return status, nil
}

// block offers the block that starts here as the start of a span.
func (g *gunzipper) block() {
	if device := g.device(); g.cut.wants(device, false) {
		low := max(0, g.index(g.member))
		g.cut.add(place{device: device, blob: g.at, bit: g.d.Bit()}, g.buf.mem[low:g.w])
	}
}

// advance makes the spans that are decided.
func (g *gunzipper) advance() error {
	device := g.device()
	if g.cut.nowhere {
		return g.cutHere(device)
	}
	c := g.cut.advance(device)
	if c == nil {
		if device-g.cut.start <= MaxSpan || g.cut.sure() <= device {
			return nil
		}
		if !g.out.o.Whole {
			return fmt.Errorf("%w: no deflate block starts in the %d device bytes from %d on (limit %d)",
				ErrNotIndexable, device-g.cut.start, g.cut.start, MaxSpan)
		}
		g.cut.nowhere = true
		return g.cutHere(device)
	}
	g.endSpan(c.device, c.blob, c.bit)
	span := index.Span{Device: c.device, Blob: c.blob, Codec: index.Deflate, Bit: c.bit}
	if c.member {
		span.Codec = index.Gzip
	}
	*g.spans = append(*g.spans, span)
	if err := g.release(c.device, true); err != nil {
		return err
	}
	return g.out.sendWindow(c)
}

// cutHere ends a span that is long enough wherever it is, as the layer is to be fetched whole.
func (g *gunzipper) cutHere(device int64) error {
	if device-g.cut.start < g.cut.size {
		return nil
	}
	g.endSpan(device, g.at, 0)
	g.cut.start = device
	*g.spans = append(*g.spans, index.Span{Device: device})
	return g.release(device, true)
}

// endSpan fills in where the last span ends.
func (g *gunzipper) endSpan(device, blob int64, bit uint8) {
	last := &(*g.spans)[len(*g.spans)-1]
	last.Size = device - last.Device
	last.BlobSize = blob - last.Blob
	if bit > 0 {
		last.BlobSize++
	}
}

// flush puts the full buffer behind the pieces that wait for a decision, and goes
// on in a new one.
func (g *gunzipper) flush() error {
	full := g.buf
	g.hold()
	next := g.device()
	if err := g.release(min(next, g.cut.sure()), false); err != nil {
		return err
	}
	// The history is read here while others read the rest of the buffer,
	// which nobody writes any more.
	buf, err := g.out.get()
	if err != nil {
		return err
	}
	copy(buf.mem[:window.Size], full.mem[g.w-window.Size:g.w])
	g.out.put(full)
	g.buf, g.w, g.first = buf, window.Size, next
	return nil
}

// hold puts what the buffer has and the pieces have not behind them.
func (g *gunzipper) hold() {
	from := g.sent
	for _, p := range g.held {
		from += int64(len(p.data))
	}
	data := g.buf.mem[g.index(from):g.w]
	if len(data) == 0 {
		return
	}
	g.buf.refs.Add(1)
	g.held = append(g.held, piece{buf: g.buf, data: data})
}

// release sends the device up to an offset to those who use it; cut: a span
// ends there.
func (g *gunzipper) release(device int64, cut bool) error {
	if cut && device > g.sent {
		g.hold() // the cut may lie in the buffer that is being filled
	}
	for len(g.held) > 0 && g.sent < device {
		p := &g.held[0]
		n := min(int64(len(p.data)), device-g.sent)
		next := piece{buf: p.buf, data: p.data[:n]}
		g.sent += n
		next.cut = cut && g.sent == device
		p.data = p.data[n:]
		if len(p.data) > 0 {
			p.buf.refs.Add(1)
		} else {
			g.held = append(g.held[:0], g.held[1:]...)
		}
		if err := g.out.send(next); err != nil {
			return err
		}
		cut = cut && !next.cut
	}
	if cut {
		// All before the cut is sent already.
		g.buf.refs.Add(1)
		return g.out.send(piece{buf: g.buf, cut: true})
	}
	return nil
}

// trailer checks a member against its trailer.
func (g *gunzipper) trailer() error {
	for len(g.src) < inflate.TrailerSize {
		if err := g.more(); err != nil {
			return err
		}
	}
	crc := binary.LittleEndian.Uint32(g.src)
	size := binary.LittleEndian.Uint32(g.src[4:])
	if crc != g.crc || size != uint32(g.device()-g.member) {
		return fmt.Errorf("%w: checksum of the gzip member that ends at %d", ErrCorrupt, g.at+inflate.TrailerSize)
	}
	g.skip(inflate.TrailerSize)
	return nil
}

// finish makes the last span of what remains. It reaches to the end of the blob.
func (g *gunzipper) finish() error {
	device := g.device()
	g.endSpan(device, g.at, 0)
	if last := len(*g.spans) - 1; (*g.spans)[last].Size == 0 {
		*g.spans = (*g.spans)[:last]
	} else if err := g.release(device, true); err != nil {
		return err
	}
	if g.cut.nowhere {
		for i, s := range *g.spans {
			(*g.spans)[i] = index.Span{Device: s.Device, Size: s.Size, Codec: index.FromStart}
		}
	}
	return nil
}
