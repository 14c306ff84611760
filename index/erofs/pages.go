package erofs

import "io"

// pageReader keeps the last pages that were read of a file: a walk of a tree
// reads small pieces that lie near each other. For one goroutine.
type pageReader struct {
	r     io.ReaderAt
	size  int64 // bytes that may be read
	pages [256]page
}

const pageSize = 4096

type page struct {
	no int64 // counted from 1; 0: empty
	b  []byte
}

// ReadAt implements io.ReaderAt.
func (r *pageReader) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		b, err := r.page((off + int64(n)) / pageSize)
		if err != nil {
			return n, err
		}
		at := (off + int64(n)) % pageSize
		if at >= int64(len(b)) {
			return n, io.EOF
		}
		n += copy(p[n:], b[at:])
	}
	return n, nil
}

func (r *pageReader) page(i int64) ([]byte, error) {
	p := &r.pages[i%int64(len(r.pages))]
	if p.no == i+1 {
		return p.b, nil
	}
	start := i * pageSize
	if start >= r.size {
		return nil, io.EOF
	}
	if p.b == nil {
		p.b = make([]byte, pageSize)
	}
	p.no = 0
	p.b = p.b[:min(pageSize, r.size-start)]
	if err := readFull(r.r, p.b, start); err != nil {
		return nil, err
	}
	p.no = i + 1
	return p.b, nil
}
