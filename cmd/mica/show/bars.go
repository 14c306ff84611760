package show

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	nameWidth = 32 // characters of a bar's name
	barWidth  = 30 // characters of a full bar
)

// Redraw is how often bars change at most.
const Redraw = 100 * time.Millisecond

// Bars draws what is waited for, and a bar for each thing that takes long, one line each, on a
// terminal; elsewhere it writes a line about all of them now and then. Other lines for stderr are
// written by means of it. The zero Bars counts, and writes nothing.
type Bars struct {
	w     io.Writer                  // nil: nothing is written
	size  func() (columns, rows int) // of the terminal; nil: there is none
	plain time.Duration              // how often a line is written without a terminal; 0: never

	mu     sync.Mutex
	status string // a line above the bars; "": none
	bars   []*Bar
	drawn  int // lines on the terminal
	last   time.Time
}

// Bar is the progress of one thing.
type Bar struct {
	p           *Bars
	name        string
	total, read int64 // guarded by Bars.mu
}

// NewBars returns bars for w. Where it is no terminal, a line is written each time that plain has
// passed (0: never).
func NewBars(w io.Writer, plain time.Duration) *Bars {
	p := &Bars{w: w, plain: plain, last: time.Now()}
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return p
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return p
	}
	p.size = func() (columns, rows int) {
		ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		if err != nil || ws.Col == 0 || ws.Row < 2 {
			return 80, 24
		}
		return int(ws.Col), int(ws.Row)
	}
	return p
}

// Quiet says whether nothing is drawn, because there is no terminal.
func (p *Bars) Quiet() bool { return p.size == nil }

// Add adds a bar for total bytes.
func (p *Bars) Add(name string, total int64) *Bar {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &Bar{p: p, name: name, total: total}
	p.bars = append(p.bars, b)
	return b
}

// SetStatus writes what is waited for above the bars.
func (p *Bars) SetStatus(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = line
	p.drawLocked(true)
}

// Clear takes all away that is drawn, for good.
func (p *Bars) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil {
		p.eraseLocked()
	}
	p.status, p.bars = "", nil
}

// Reader counts what is read from r.
func (b *Bar) Reader(r io.Reader) io.Reader { return &barReader{b, r} }

// Remove takes the bar away.
func (b *Bar) Remove() {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.bars = slices.DeleteFunc(b.p.bars, func(other *Bar) bool { return other == b })
	b.p.drawLocked(true)
}

// Bytes says how much was read.
func (b *Bar) Bytes() int64 {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	return b.read
}

type barReader struct {
	b *Bar
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

// Done draws the bar as it is in the end.
func (b *Bar) Done() {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.drawLocked(true)
}

// Write implements io.Writer: it writes whole lines above the bars.
func (p *Bars) Write(lines []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil {
		return len(lines), nil
	}
	p.eraseLocked()
	n, err := p.w.Write(lines)
	p.drawLocked(true)
	return n, err
}

// eraseLocked takes the bars away.
func (p *Bars) eraseLocked() {
	if p.drawn > 0 {
		_, _ = fmt.Fprintf(p.w, "\x1b[%dA\r\x1b[J", p.drawn) // a lost bar is no reason to stop
		p.drawn = 0
	}
}

// writeLocked writes a line about all bars, where there is no terminal.
func (p *Bars) writeLocked() {
	if p.w == nil || p.plain <= 0 || time.Since(p.last) < p.plain {
		return
	}
	p.last = time.Now()
	var read, total int64
	done := 0
	for _, b := range p.bars {
		read, total = read+b.read, total+b.total
		if b.read >= b.total {
			done++
		}
	}
	// A lost line is no reason to stop.
	_, _ = fmt.Fprintf(p.w, "%s: %s of %s, %d of %d done\n", p.status, Bytes(read), Bytes(total),
		done, len(p.bars))
}

func (p *Bars) drawLocked(now bool) {
	if p.size == nil {
		p.writeLocked()
		return
	}
	if !now && time.Since(p.last) < Redraw {
		return
	}
	p.last = time.Now()
	p.eraseLocked()
	columns, rows := p.size()
	var lines []string
	if p.status != "" {
		lines = append(lines, p.status[:min(len(p.status), max(columns-1, 1))])
	}
	// Where there are more bars than lines, those that are at work are drawn. The last line is the
	// cursor's.
	bars := p.bars
	if room := rows - 1 - len(lines); len(bars) > room {
		bars = slices.DeleteFunc(slices.Clone(bars), func(b *Bar) bool { return b.read >= b.total })
		bars = bars[:min(len(bars), max(room, 0))]
	}
	for _, b := range bars {
		lines = append(lines, b.line(columns))
	}
	p.drawn = len(lines)
	for _, l := range lines {
		_, _ = io.WriteString(p.w, l+"\n") // a lost bar is no reason to stop
	}
}

// line draws a bar on fewer characters than a terminal has columns, because in the last one some
// terminals begin a new line.
func (b *Bar) line(columns int) string {
	room := max(columns-1, 1)
	numbers := fmt.Sprintf(" %s of %s", Bytes(b.read), Bytes(b.total))
	named := max(min(nameWidth, room-len(numbers)), 0)
	name := fmt.Sprintf("%-*.*s", named, named, b.name)
	width := min(barWidth, room-len(name)-len(numbers)-len(" []"))
	line := name + numbers
	if width > 0 {
		full := int(int64(width) * b.read / max(b.total, 1))
		full = min(max(full, 0), width)
		done, left := strings.Repeat("=", full), strings.Repeat(" ", width-full)
		line = fmt.Sprintf("%s [%s%s]%s", name, done, left, numbers)
	}
	return line[:min(len(line), room)]
}
