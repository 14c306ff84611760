package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// barWidth is the number of characters of a full bar.
const barWidth = 30

// redraw is how often bars change at most.
const redraw = 100 * time.Millisecond

// progress draws a bar for each thing that takes long, one line each, on a terminal; elsewhere
// it is quiet.
type progress struct {
	w io.Writer // nil: quiet

	mu    sync.Mutex
	bars  []*bar
	drawn int // lines on the terminal
	last  time.Time
}

// bar is the progress of one thing.
type bar struct {
	p           *progress
	name        string
	total, read int64 // guarded by progress.mu
}

func newProgress(f *os.File) *progress {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return &progress{}
	}
	return &progress{w: f}
}

// add adds a bar for total bytes.
func (p *progress) add(name string, total int64) *bar {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &bar{p: p, name: name, total: total}
	p.bars = append(p.bars, b)
	return b
}

// reader counts what is read from r.
func (b *bar) reader(r io.Reader) io.Reader { return &barReader{b, r} }

type barReader struct {
	b *bar
	r io.Reader
}

func (r *barReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.b.p.mu.Lock()
	defer r.b.p.mu.Unlock()
	r.b.read += int64(n)
	r.b.p.drawLocked(false)
	return n, err
}

// done draws the bar as it is in the end.
func (b *bar) done() {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.drawLocked(true)
}

func (p *progress) drawLocked(now bool) {
	if p.w == nil || !now && time.Since(p.last) < redraw {
		return
	}
	p.last = time.Now()
	var s strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&s, "\x1b[%dA", p.drawn)
	}
	for _, b := range p.bars {
		full := int(barWidth * b.read / max(b.total, 1))
		full = min(max(full, 0), barWidth)
		fmt.Fprintf(&s, "\r\x1b[K%-38s [%s%s] %s of %s\n", b.name, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
			bytesText(b.read), bytesText(b.total))
	}
	p.drawn = len(p.bars)
	_, _ = io.WriteString(p.w, s.String()) // a lost bar is no reason to stop
}
