package show

import (
	"fmt"
	"strings"
	"testing"
)

// TestBars draws bars on terminals of several sizes: no line is as wide as the terminal, and no
// more are drawn than it has room for. What is drawn goes before more is.
func TestBars(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {40, 24}, {10, 5}, {200, 3}, {80, 2}, {1, 2}} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var out strings.Builder
			p := &Bars{w: &out, size: func() (int, int) { return size[0], size[1] }}
			p.SetStatus("waiting for a registry that is far away and has much to do, as it seems")
			for k := range 30 {
				b := p.Add(fmt.Sprintf("layer %d/30 sha256:0123456789", k+1), 12_345_678_901)
				b.read = int64(k) << 20
			}
			p.bars[0].read = p.bars[0].total
			drawn := 0
			for round := range 3 {
				out.Reset()
				fmt.Fprintln(p, "a line")
				text := out.String()
				if round > 0 && !strings.HasPrefix(text, fmt.Sprintf("\x1b[%dA\r\x1b[J", drawn)) {
					t.Errorf("%d lines are not erased: %q", drawn, text)
				}
				_, text, _ = strings.Cut(text, "a line\n")
				drawn = strings.Count(text, "\n")
				if drawn == 0 || drawn >= size[1] {
					t.Errorf("%d lines on a terminal with %d", drawn, size[1])
				}
				for line := range strings.Lines(text) {
					if n := len(line) - 1; n >= size[0] && n > 1 {
						t.Errorf("line of %d characters on %d columns: %q", n, size[0], line)
					}
				}
			}
		})
	}
}
