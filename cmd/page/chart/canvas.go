package chart

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// Style is the style sheet of all that is drawn. The classes k0 to k5 are the series' colours, of
// which charts of more series begin again.
const Style = `svg text { font-family: system-ui, 'Helvetica Neue', Arial, sans-serif;
  fill: #222222 }
svg .title { font-size: 19px; font-weight: 600 }
svg .heading { font-size: 15px; font-weight: 600 }
svg .label { font-size: 12px }
svg .note { font-size: 12px; fill: #666666 }
svg .small { font-size: 9.5px; fill: #444444 }
svg .grid { stroke: #e4e4e4; stroke-width: 1 }
svg .axis { stroke: #666666; stroke-width: 1 }
svg .mark { stroke: #c0272d; stroke-width: 1.4; stroke-dasharray: 4 3 }
svg .part { fill: #444444 }
svg .k0 { fill: #8a8f98 }
svg .k1 { fill: #c2813a }
svg .k2 { fill: #6aa7df }
svg .k3 { fill: #1c5fb0 }
svg .k4 { fill: #a86bb8 }
svg .k5 { fill: #57a878 }
`

const colours = 6 // in Style

// canvas collects the elements of an SVG document. Coordinates are pixels from
// the upper left corner.
type canvas struct {
	body strings.Builder
}

// rect draws a filled rectangle of a class; a viewer shows tip, if there is one, under the pointer.
func (c *canvas) rect(x, y, w, h float64, class string, opacity float64, tip string) {
	fmt.Fprintf(&c.body, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" class="%s" `+
		`fill-opacity="%.2f">`, x, y, w, h, class, opacity)
	if tip != "" {
		c.body.WriteString("<title>" + escape(tip) + "</title>")
	}
	c.body.WriteString("</rect>\n")
}

// begin begins a group of elements that have a tip; end ends it.
func (c *canvas) begin(tip string) { c.body.WriteString("<g><title>" + escape(tip) + "</title>") }
func (c *canvas) end()             { c.body.WriteString("</g>\n") }

// line draws a line of a class of the style sheet.
func (c *canvas) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(&c.body, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n",
		x1, y1, x2, y2, class)
}

// text writes a line of text; anchor says which point of it is at x: start, middle or end.
func (c *canvas) text(x, y float64, class, anchor, text string) {
	fmt.Fprintf(&c.body, `<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>`+"\n",
		x, y, class, anchor, escape(text))
}

// writeTo writes the document.
func (c *canvas) writeTo(w io.Writer, width, height float64) error {
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg"
width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f">
<style>%s</style>
<rect width="100%%" height="100%%" fill="#ffffff"/>
%s</svg>
`, width, height, width, height, Style, c.body.String())
	return err
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}
