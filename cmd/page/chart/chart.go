// Package chart draws as SVG the requests of one start over time, a Waterfall, and what the
// benchmarks measure as one document: rows of panels with bars, each panel on a scale of its own,
// and below them a Waterfall.
//
// Both are values; Write and Inline have no other input and draw equal values equally.
package chart

import (
	"fmt"
	"io"
	"math"
)

// Figure is the whole document.
type Figure struct {
	Title     string
	Notes     []string // lines below the title
	Series    []string // names of the bars, in their order; each has a colour
	Phases    []string // names of the parts of a bar, the lowest first
	Mark      string   // name of the panels' marks
	Rows      []Row
	Waterfall *Waterfall // nil: none
}

// Row is a line of panels.
type Row struct {
	Title  string
	Panels []Panel
}

// Panel is a group of bars, in seconds.
type Panel struct {
	Title string
	Bars  []Bar
	Mark  float64 // drawn as a dashed line across all bars; 0: none
}

// Bar is one bar, made up of parts.
type Bar struct {
	Series int       // index in Figure.Series
	Parts  []float64 // seconds, one for each of Figure.Phases
	Total  float64   // written above; medians of parts need not add up to it
}

// height is what the bar needs of the scale.
func (b Bar) height() float64 {
	var s float64
	for _, p := range b.Parts {
		s += p
	}
	return s
}

// Sizes in pixels.
const (
	width       = 1120.0
	margin      = 28.0
	panelHeight = 150.0
	widest      = 420.0 // of a panel
	rowHeight   = panelHeight + 74
	lineHeight  = 17.0
)

// fade holds the opacities of a bar's parts, the lowest part's first.
var fade = []float64{1, 0.72, 0.45, 0.3}

// Write writes the figure.
func (f Figure) Write(w io.Writer) error {
	y := margin + 8
	c := &canvas{}
	c.text(margin, y, "title", "start", f.Title)
	for _, n := range f.Notes {
		y += lineHeight
		c.text(margin, y, "note", "start", n)
	}
	y = f.legend(c, y+26)
	for _, r := range f.Rows {
		f.row(c, y, r)
		y += rowHeight
	}
	if f.Waterfall != nil {
		y = f.Waterfall.draw(c, y+16)
	}
	return c.writeTo(w, width, y+margin)
}

// legend explains colours, opacities and the mark, from y on; it returns the y below it.
func (f Figure) legend(c *canvas, y float64) float64 {
	x := margin
	entry := func(name string, key func(x float64)) {
		need := 26 + 6.6*float64(len(name))
		if x+need > width-margin {
			x, y = margin, y+lineHeight+3
		}
		key(x)
		c.text(x+17, y, "label", "start", name)
		x += need + 8
	}
	for i, s := range f.Series {
		entry(s, func(x float64) { c.rect(x, y-10, 12, 12, colour(i), 1, "") })
	}
	for i, p := range f.Phases {
		entry(p, func(x float64) { c.rect(x, y-10, 12, 12, "part", opacity(i), "") })
	}
	if f.Mark != "" {
		entry(f.Mark, func(x float64) { c.line(x, y-4, x+12, y-4, "mark") })
	}
	return y + 14
}

func (f Figure) row(c *canvas, y float64, r Row) {
	c.text(margin, y+16, "heading", "start", r.Title)
	if len(r.Panels) == 0 {
		return
	}
	each := math.Min((width-2*margin)/float64(len(r.Panels)), widest)
	for i, p := range r.Panels {
		f.panel(c, margin+float64(i)*each, y+30, each, p)
	}
}

// panel draws bars into the box at x, y of the given width and panelHeight,
// its title below.
func (f Figure) panel(c *canvas, x, y, wide float64, p Panel) {
	top := p.Mark
	for _, b := range p.Bars {
		top = math.Max(top, b.height())
	}
	const left = 30.0
	plot := wide - left - 8
	bottom := y + panelHeight
	c.text(x+left+plot/2, bottom+17, "label", "middle", p.Title)
	if top <= 0 {
		c.text(x+left+plot/2, y+panelHeight/2, "note", "middle", "not measured")
		return
	}
	step := tick(top, 4)
	scale := (panelHeight - 12) / top
	for i := 0; float64(i)*step <= top; i++ {
		at := bottom - float64(i)*step*scale
		c.line(x+left, at, x+left+plot, at, "grid")
		c.text(x+left-4, at+3, "small", "end", number(float64(i)*step))
	}
	slot := plot / float64(len(p.Bars))
	for i, b := range p.Bars {
		bx, bw := x+left+float64(i)*slot+slot*0.12, slot*0.76
		at := bottom
		for j, v := range b.Parts {
			at -= v * scale
			c.rect(bx, at, bw, v*scale, colour(b.Series), opacity(j),
				fmt.Sprintf("%s: %s %.2f s", f.Series[b.Series], f.Phases[j], v))
		}
		c.text(bx+bw/2, at-3, "small", "middle", number(b.Total))
	}
	if p.Mark > 0 {
		c.line(x+left, bottom-p.Mark*scale, x+left+plot, bottom-p.Mark*scale, "mark")
	}
	c.line(x+left, bottom, x+left+plot, bottom, "axis")
}

func colour(series int) string { return fmt.Sprintf("k%d", series%colours) }

func opacity(phase int) float64 { return fade[min(phase, len(fade)-1)] }

// tick returns the distance of at most about n marks up to top: 1, 2 or 5 times a power of 10.
func tick(top float64, n int) float64 {
	raw := top / float64(n)
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5} {
		if m*unit >= raw {
			return m * unit
		}
	}
	return 10 * unit
}

// number writes seconds in three digits at most.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 9.95:
		return fmt.Sprintf("%.2f", v)
	case v < 99.5:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
