package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func figure() Figure {
	return Figure{
		Title: "a < b & c", Notes: []string{"note"}, Series: []string{"one", "two"},
		Phases: []string{"pull", "ready"}, Mark: "B",
		Rows: []Row{{Title: "network", Panels: []Panel{
			{Title: "hello", Mark: 0.5,
				Bars: []Bar{{0, []float64{1, 2}, 3}, {1, []float64{0.25, 0.125}, 0.38}}},
			{Title: "empty"},
		}}},
		Waterfall: &Waterfall{Title: "requests", Marks: []Mark{{"ready", 2}}, Requests: []Request{
			{Label: "manifest", Kind: "manifest", Sent: 0, First: 0.02, Last: 0.02, Bytes: 900},
			{Label: "blob <1>", Kind: "blob", Sent: 0.1, First: 0.12, Last: 1.5, Bytes: 3e6},
		}},
	}
}

func draw(t *testing.T, f Figure) string {
	t.Helper()
	var b strings.Builder
	if err := f.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A figure is one well-formed document that holds every name and number.
func TestFigure(t *testing.T) {
	got := draw(t, figure())
	d := xml.NewDecoder(strings.NewReader(got))
	var texts []string
	elements := map[string]int{}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in %s", err, got)
		}
		switch v := token.(type) {
		case xml.StartElement:
			elements[v.Name.Local]++
		case xml.CharData:
			texts = append(texts, string(v))
		}
	}
	for _, want := range []string{
		"a < b & c", "note", "one", "two", "pull", "B", "network", "hello", "3.00", "0.38", "empty",
		"not measured", "requests", "blob <1>", "3.0 MB", "900 B", "ready 2.00 s", "two: ready 0.12 s",
	} {
		if !strings.Contains(strings.Join(texts, "\n"), want) {
			t.Errorf("no text %q", want)
		}
	}
	// background, 4 keys, 4 parts, 2 keys, 2 requests of 2 parts
	if elements["svg"] != 1 || elements["rect"] != 1+4+4+2+4 {
		t.Errorf("elements %v", elements)
	}
	if inline := figure().Waterfall.Inline(); !strings.Contains(inline, "blob &lt;1&gt;") ||
		strings.Contains(inline, "style") || xml.Unmarshal([]byte(inline), &struct{}{}) != nil {
		t.Errorf("inline: %s", inline)
	}
	if again := draw(t, figure()); again != got {
		t.Error("the same figure was drawn differently")
	}
}

// Nothing is drawn with a coordinate that is no number, whatever the values.
func TestCoordinates(t *testing.T) {
	f := figure()
	f.Rows[0].Panels[0] = Panel{Title: "zero", Bars: []Bar{{0, []float64{0, 0}, 0}}}
	f.Waterfall.Requests = f.Waterfall.Requests[:1]
	f.Waterfall.Requests[0] = Request{}
	f.Waterfall.Marks = nil
	if got := draw(t, f); strings.Contains(got, "NaN") || strings.Contains(got, "Inf") {
		t.Errorf("drawn: %s", got)
	}
	f.Rows, f.Waterfall = nil, nil
	draw(t, f)
}

func TestTick(t *testing.T) {
	for _, tt := range []struct{ top, want float64 }{
		{10, 5}, {8, 2}, {0.3, 0.1}, {3.9, 1}, {4.1, 2}, {70, 20},
	} {
		if got := tick(tt.top, 4); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("tick(%v) = %v, want %v", tt.top, got, tt.want)
		}
	}
}
