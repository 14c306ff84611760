package index

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Draft is what a scan of a layer makes and Write turns into an index.
type Draft struct {
	Header
	Root  *erofs.Node
	Spans []Span

	// Entries lists a directory, in the place of erofs.Node.Children, where it is not nil: see
	// erofs.NewPlan.
	Entries func(dir *erofs.Node) ([]erofs.Entry, error)
}

// Write writes the index file of d to w and returns its size in bytes. Equal
// drafts give equal bytes. The file is produced from front to back, twice, as
// the header holds digests of what follows it; memory beyond d's own is about 50
// bytes a file.
//
// Errors that are not w's say what of the layer EROFS cannot represent, by path.
func Write(w io.Writer, d *Draft) (int64, error) {
	p, err := newPlan(d, 0)
	var n int64
	if err == nil {
		n, err = p.write(w)
	}
	if err != nil {
		return n, fmt.Errorf("write index of layer %s: %w", d.Layer, err)
	}
	return n, nil
}

// plan is an index file whose parts have their places.
type plan struct {
	draft *Draft
	tree  *erofs.Plan
}

// newPlan checks d, which has about so many files, and lays its tree out.
func newPlan(d *Draft, files int64) (*plan, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	if err := Spans(d.Spans).check(&d.Header); err != nil {
		return nil, err
	}
	tree, err := erofs.NewPlan(d.Root, d.Entries, d.device(), files)
	return &plan{d, tree}, err
}

func (p *plan) write(w io.Writer) (int64, error) {
	h := FileHeader{Header: p.draft.Header, size: HeaderSize}
	for i, emit := range p.sections() {
		if err := h.measure(i, emit); err != nil {
			return 0, err
		}
	}
	h.section[sectionDigests] = section{
		Range: Range{Off: p.draft.WindowsSize}, sum: sha256.Sum256(nil),
	}
	b, err := h.encode()
	if err != nil {
		return 0, err
	}
	if _, err := w.Write(b[:]); err != nil {
		return 0, err
	}
	total := int64(HeaderSize)
	for _, emit := range p.sections() {
		n, err := emit(w)
		if total += n; err != nil {
			return total, err
		}
	}
	return total, nil
}

// Restore writes the index file that h is the header of, of the draft that it was written of.
// d.Header is set to that. The error for a draft of another file, or of one that Check would not
// accept, wraps ErrCorrupt; w then holds a part of a file that is worth nothing.
func (h *FileHeader) Restore(w io.Writer, d *Draft) error {
	d.Header = h.Header
	const least = 96 // bytes of the tree for one file, about
	p, err := newPlan(d, min(h.section[sectionTree].Size/least, 1<<16))
	if err != nil {
		return corrupt("%v", err)
	}
	if err := p.tree.CheckPaths(); err != nil {
		return err
	}
	return p.writeAs(w, h)
}

// writeAs writes the index file, once, if it is the one that h describes.
func (p *plan) writeAs(w io.Writer, h *FileHeader) error {
	// A small draft can stand for a large tree: it is as large as was said, or not written.
	if n := HeaderSize + h.section[sectionTree].Size; n != p.tree.Size() {
		return corrupt("tree of %d bytes, the header says %d", p.tree.Size(), n)
	}
	header, err := h.encode()
	if err != nil {
		return err
	}
	if _, err := w.Write(header[:]); err != nil {
		return err
	}
	made := FileHeader{size: HeaderSize}
	for i, emit := range p.sections() {
		err := made.measure(i, func(sum io.Writer) (int64, error) { return emit(io.MultiWriter(w, sum)) })
		if err != nil {
			return err
		}
		if made.section[i] != h.section[i] {
			return corrupt("section %d is not what the header says", i)
		}
	}
	return nil
}

// sections are the functions that write the file's sections, in their order.
func (p *plan) sections() []func(io.Writer) (int64, error) {
	return []func(io.Writer) (int64, error){p.tree.Write, p.writeSpans, p.writeImplicit}
}

// measure sets section i, which follows what was measured before, to what emit writes.
func (h *FileHeader) measure(i int, emit func(io.Writer) (int64, error)) error {
	sum := sha256.New()
	n, err := emit(sum)
	if err != nil {
		return err
	}
	h.section[i].Range = Range{Off: h.size, Size: n}
	sum.Sum(h.section[i].sum[:0])
	h.size += n
	return nil
}

// writeSpans writes the span table and returns its size.
func (p *plan) writeSpans(w io.Writer) (int64, error) {
	out := bufio.NewWriterSize(w, min(64<<10, len(p.draft.Spans)*spanSize))
	var buf []byte
	for i := range p.draft.Spans {
		buf = p.draft.Spans[i].append(buf[:0])
		_, _ = out.Write(buf) // bufio keeps the first error for Flush
	}
	return int64(len(p.draft.Spans)) * spanSize, out.Flush()
}

// writeImplicit writes the nids of the implicit directories, 8 bytes each, in
// their order, and returns the size of the list.
func (p *plan) writeImplicit(w io.Writer) (int64, error) {
	var b []byte
	for _, nid := range p.tree.Implicit() {
		b = binary.LittleEndian.AppendUint64(b, nid)
	}
	_, err := w.Write(b)
	return int64(len(b)), err
}
