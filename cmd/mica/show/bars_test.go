package show

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
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
					if bar := strings.HasPrefix(line, "layer"); bar && size[0] >= 40 &&
						!strings.HasSuffix(line, " of 12.3 GB\n") {
						t.Errorf("no numbers on %d columns: %q", size[0], line)
					}
				}
			}
		})
	}
}

// TestBarsPlain: where there is no terminal, a line tells how far all is, now and then, and none
// does where nobody wants it. Other lines pass.
func TestBarsPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for every, want := range map[time.Duration]string{
			5 * time.Second: "a line\nredis: 300 B of 400 B, 1 of 2 done\n" +
				"redis: 400 B of 400 B, 2 of 2 done\n",
			0: "a line\n",
		} {
			var out strings.Builder
			p := NewBars(&out, every)
			p.SetStatus("redis")
			a, b := p.Add("a", 300), p.Add("b", 100)
			fmt.Fprintln(p, "a line")
			read := func(b *Bar, n int64) {
				if _, err := io.CopyN(io.Discard, b.Reader(rand.Reader), n); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(4 * time.Second)
			read(a, 200)
			time.Sleep(time.Second)
			read(a, 100)
			time.Sleep(6 * time.Second)
			read(b, 100)
			b.Done()
			if got := out.String(); got != want {
				t.Errorf("every %v: %q, want %q", every, got, want)
			}
		}
	})
}

// TestBarsTerminal: a terminal is known for one, with its size, and not where it is a dumb one.
func TestBarsTerminal(t *testing.T) {
	leader, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	fd := int(leader.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 10, Col: 60}))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Setenv("TERM", "xterm")
	p := NewBars(f, time.Hour)
	if p.Quiet() {
		t.Fatal("it is taken for none")
	}
	if columns, rows := p.size(); columns != 60 || rows != 10 {
		t.Errorf("%d columns, %d rows", columns, rows)
	}
	t.Setenv("TERM", "dumb")
	if !NewBars(f, time.Hour).Quiet() {
		t.Error("a dumb one is taken for one that can be drawn on")
	}
}
