package chart

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Waterfall is the requests of one start over time, in the order in which they
// were sent. Times are seconds since the start.
type Waterfall struct {
	Title    string
	Kinds    []string // those that are named first; others follow as they come
	Requests []Request
	Marks    []Mark
	Height   float64 // of the lines together, at most, pixels; 0: 620
}

// Request is one line: it waits from Sent to First and receives until Last.
type Request struct {
	Label             string
	Kind              string // requests of one kind have one colour
	Sent, First, Last float64
	Bytes             float64
}

// Mark is a moment of the start, drawn across all lines.
type Mark struct {
	Label string
	At    float64
}

const (
	waterfallHeight = 620.0
	tallest         = 15.0 // of a line
	labelled        = 9.0  // lines of this height have their label beside them
	labelMost       = 250.0
	sizeWidth       = 62.0
)

// Inline returns the waterfall as an SVG element of an HTML page, which has Style and the title.
func (w *Waterfall) Inline() string {
	c := &canvas{}
	height := w.draw(c, -20) + 10
	return fmt.Sprintf(`<svg viewBox="0 0 %.0f %.0f" role="img" aria-label="%s">%s</svg>`, width,
		height, escape(w.Title), c.body.String())
}

// draw draws from y on and returns the y below.
func (w *Waterfall) draw(c *canvas, y float64) float64 {
	if y > 0 {
		c.text(margin, y+16, "heading", "start", w.Title)
	}
	kinds := w.kinds()
	x := margin
	y += 36
	for i, k := range kinds {
		c.rect(x, y-10, 12, 12, colour(i), 1, "")
		c.text(x+17, y, "label", "start", k)
		x += 44 + 6.6*float64(len(k))
	}
	c.text(x, y, "label", "start", "pale: waiting for the first byte; full: receiving")
	y += 34 // the marks' labels stand in it
	if len(w.Requests) == 0 {
		return y
	}
	height := math.Min(tallest,
		cmp.Or(w.Height, waterfallHeight)/float64(len(w.Requests)))
	left, right := margin+8, width-margin-sizeWidth
	if height >= labelled {
		left = margin + w.labelWidth()
	}
	end := w.end()
	at := func(t float64) float64 { return left + t/end*(right-left) }
	bottom := y + height*float64(len(w.Requests))
	w.axis(c, at, y, bottom, end)
	for i, r := range w.Requests {
		top := y + float64(i)*height
		fill := colour(slices.Index(kinds, r.Kind))
		c.begin(fmt.Sprintf("%s: sent %.3f s, first byte %.3f s, last %.3f s, %s", r.Label, r.Sent,
			r.First, r.Last, bytesText(r.Bytes)))
		c.rect(at(r.Sent), top+height*0.1, math.Max(at(r.First)-at(r.Sent), 0.5), height*0.8,
			fill, 0.35, "")
		c.rect(at(r.First), top+height*0.1, math.Max(at(r.Last)-at(r.First), 1), height*0.8,
			fill, 1, "")
		c.end()
		if height >= labelled {
			c.text(left-6, top+height*0.72, "small", "end", r.Label)
			c.text(width-margin, top+height*0.72, "small", "end", bytesText(r.Bytes))
		}
	}
	for i, m := range w.Marks {
		// two heights, so that labels of moments close together can be told apart
		c.line(at(m.At), y-4-float64(i%2)*12, at(m.At), bottom, "mark")
		c.text(at(m.At)+3, y-5-float64(i%2)*12, "small", "start", fmt.Sprintf("%s %.2f s", m.Label, m.At))
	}
	return bottom + 20
}

func (w *Waterfall) axis(c *canvas, at func(float64) float64, top, bottom, end float64) {
	step := tick(end, 10)
	for i := 0; float64(i)*step <= end; i++ {
		t := float64(i) * step
		c.line(at(t), top, at(t), bottom, "grid")
		c.text(at(t), bottom+13, "small", "middle", number(t)+" s")
	}
}

// kinds lists the requests' kinds: Kinds, and then the others in the order in which they occur.
func (w *Waterfall) kinds() []string {
	kinds := slices.Clone(w.Kinds)
	for _, r := range w.Requests {
		if !slices.Contains(kinds, r.Kind) {
			kinds = append(kinds, r.Kind)
		}
	}
	return kinds
}

// labelWidth is what the labels need.
func (w *Waterfall) labelWidth() float64 {
	longest := 0
	for _, r := range w.Requests {
		longest = max(longest, len(r.Label))
	}
	return math.Min(14+5.5*float64(longest), labelMost)
}

// end is the time of the last thing that is drawn.
func (w *Waterfall) end() float64 {
	end := 0.001
	for _, r := range w.Requests {
		end = math.Max(end, math.Max(r.First, r.Last))
	}
	for _, m := range w.Marks {
		end = math.Max(end, m.At)
	}
	return end
}

func bytesText(n float64) string {
	switch {
	case n < 1e3:
		return fmt.Sprintf("%.0f B", n)
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", n/1e3)
	}
	return fmt.Sprintf("%.1f MB", n/1e6)
}
