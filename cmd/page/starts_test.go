package page

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

func layersOf(names ...string) (all []digest.Digest) {
	for _, n := range names {
		all = append(all, digest.FromString(n))
	}
	return all
}

// TestStarts: a pull and the container that follows are one start, which is ready when the last
// read has its bytes; what follows later is another.
func TestStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Starts
		image, layers := digest.FromString("image"), layersOf("a", "b")
		s.Announced("r.test/app", image, layers)
		if all := s.Latest(); len(all) != 0 {
			t.Errorf("an image that nobody has asked for is shown: %+v", all)
		}
		began := time.Now()
		time.Sleep(time.Second)
		done := s.Pulling("r.test/app:1", image, layers)
		time.Sleep(time.Second)
		done()
		s.Waits(digest.FromString("other").String(), 0, 1)()
		s.Starting("k8s.io/1/c", "r.test/app:1", image, layers)
		s.Starting("k8s.io/1/c", "r.test/app:1", image, layers) // its task
		over := s.Waits(layers[1].String(), 4096, 100)
		time.Sleep(time.Second)
		x := s.Latest()[0]
		if !x.Ready.IsZero() || len(x.Lines) != 1 || x.Lines[0].Over {
			t.Errorf("while a read waits: %+v", x)
		}
		over()
		time.Sleep(calm + time.Second)
		all := s.Latest()
		if x = all[0]; len(all) != 1 || x.Ref != "r.test/app:1" || x.Container != "k8s.io/1/c" ||
			x.Began != began || x.Pulled.Sub(began) != 2*time.Second || x.Created != x.Pulled ||
			x.Ready.Sub(began) != 3*time.Second {
			t.Errorf("start %+v", all)
		}
		want := admin.Line{Kind: admin.KindRead, What: layers[1].String(), Range: "4096-4195",
			Sent: x.Created, First: x.Ready, Last: x.Ready, Bytes: 100, Over: true}
		if x.Lines[0] != want {
			t.Errorf("read %+v, want %+v", x.Lines[0], want)
		}
		s.Starting("k8s.io/1/d", "r.test/app:1", image, layers)
		time.Sleep(calm + time.Second)
		if all = s.Latest(); len(all) != 2 || all[0].Container != "k8s.io/1/d" ||
			!all[0].Pulled.IsZero() || all[0].Ready != all[0].Created {
			t.Errorf("a second container: %+v", all)
		}
	})
}

// TestStartsBounds: neither starts nor lines grow without bound, and what is left out is counted.
func TestStartsBounds(t *testing.T) {
	var s Starts
	for i := range maxStarts + 5 {
		layers := layersOf(fmt.Sprint(i))
		s.Starting(fmt.Sprint(i), "r.test/app:1", layers[0], layers)
		for range 150 {
			s.Waits(layers[0].String(), 0, 1)()
		}
	}
	all := s.Latest()
	lines := 0
	for _, x := range all {
		lines += len(x.Lines)
		if len(x.Lines)+x.Left != 150 {
			t.Errorf("%s: %d lines, %d left out", x.Container, len(x.Lines), x.Left)
		}
	}
	if len(all) != maxStarts || lines > maxLines || lines != s.lines || len(all[0].Lines) != 150 {
		t.Errorf("%d starts with %d lines, counted %d", len(all), lines, s.lines)
	}
	layers := layersOf("large")
	s.Starting("large", "r.test/app:1", layers[0], layers)
	for range maxLines + 7 {
		s.Waits(layers[0].String(), 0, 1)()
	}
	if x := s.Latest()[0]; len(x.Lines) != maxLines || x.Left != 7 {
		t.Errorf("%d lines, %d left out", len(x.Lines), x.Left)
	}
}
