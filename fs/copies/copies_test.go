package copies

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/remote"
)

const (
	repository = "example.org/image"
	size       = 1 << 20 // of a frame
)

var windows = digest.FromString("windows")

// taker is a layer that takes what it lacks, when goOn says so.
type taker struct {
	has  map[int]bool
	goOn chan struct{} // nil: at once
	bad  int           // the span that is wrong; 0: none

	mu    sync.Mutex
	spans []int
	bytes []byte
	still sync.WaitGroup
}

func (l *taker) Lacks(i int) bool { return !l.has[i] }

func (l *taker) Offer(_ context.Context, i int, b []byte, done func(error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spans = append(l.spans, i)
	l.bytes = append(l.bytes, b...)
	l.still.Go(func() {
		if l.goOn != nil {
			<-l.goOn
		}
		if i == l.bad && i > 0 {
			done(errors.New("wrong"))
		} else {
			done(nil)
		}
	})
}

func (l *taker) taken() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.spans)
}

// world is a registry that has a copy, and what is pushed of it.
type world struct {
	t      *testing.T
	blob   []byte
	asked  atomic.Int64
	budget *line.Budget
	said   bytes.Buffer
	all    *Copies
	push   *Push
	ended  chan struct{}
	end    context.CancelFunc
}

// begin pushes a copy that has so many frames of layers a and b in turns, spans 1, 1, 2, 2, …
func begin(t *testing.T, frames int, handler http.HandlerFunc) *world {
	t.Helper()
	w := &world{t: t, blob: make([]byte, frames*size), budget: line.New(0, 0)}
	_, _ = rand.NewChaCha8([32]byte{}).Read(w.blob)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.asked.Add(1)
		if handler != nil {
			handler(rw, r)
			return
		}
		http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(w.blob))
	}))
	t.Cleanup(server.Close)
	client, err := remote.New(remote.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	image, err := client.Image(strings.TrimPrefix(server.URL, "http://") + "/image:1")
	if err != nil {
		t.Fatal(err)
	}
	c := Copy{Image: image, Repository: repository, Windows: windows,
		Blob: ocispec.Descriptor{Digest: digest.FromString("copy"), Size: int64(len(w.blob))}}
	for i := range frames {
		c.Frames = append(c.Frames, published.Frame{Layer: name(i), Span: 1 + i/2,
			Range: index.Range{Off: int64(i) * size, Size: size}})
	}
	w.all = New(w.budget, slog.New(slog.NewTextHandler(&w.said, nil)))
	ctx, end := context.WithCancel(t.Context())
	w.end, w.ended = end, make(chan struct{})
	w.push = w.all.Begin(ctx, c)
	go func() {
		defer close(w.ended)
		w.push.Run(2, func(int) int64 { return 4 * size })
	}()
	t.Cleanup(func() {
		end()
		<-w.ended
		w.eventually("all memory is given back", func() bool {
			all := w.budget.Frames
			if !all.Try(all.Size()) {
				return false
			}
			all.Release(all.Size())
			return true
		})
		if len(w.all.all) > 0 {
			t.Error("a push that has ended is kept")
		}
	})
	return w
}

// name is the layer of a frame.
func name(frame int) digest.Digest { return digest.FromString([]string{"a", "b"}[frame%2]) }

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not in 20 s: %s", what)
		}
	}
}

// feed returns what is pushed to the layer of a frame, by the word of a repository.
func (w *world) feed(frame int, voucher string) *Feed {
	return w.all.Feed(&store.Record{Layer: name(frame), Vouchers: []string{voucher},
		Windows: store.Windows{Blob: windows}})
}

// open opens the layer of a frame.
func (w *world) open(frame int, l *taker) *Feed {
	f := w.feed(frame, repository)
	f.Open(l)
	w.t.Cleanup(l.still.Wait)
	return f
}

func over(f *Feed) bool {
	select {
	case <-f.Over():
		return true
	default:
		return false
	}
}

// TestPush: layers get their frames in order, those that come before they are open as well, by few
// requests, as there is room.
func TestPush(t *testing.T) {
	w := begin(t, 40, nil)
	w.eventually("the room is full", func() bool { return w.asked.Load() == 4 })
	a, b := &taker{}, &taker{}
	fa := w.feed(0, repository)
	w.eventually("16 are here", func() bool { return !fa.Coming(8, true) })
	if !fa.Coming(9, false) || fa.Coming(9, true) || fa.Coming(8, false) || fa.Coming(21, false) {
		t.Error("what is coming is not what there is no room for")
	}
	w.open(0, a)
	if got := a.taken(); len(got) < 8 {
		t.Errorf("of what was kept %v were offered", got)
	}
	fb := w.open(1, b)
	<-w.ended
	if n := w.asked.Load(); n != 10 {
		t.Errorf("%d requests", n)
	}
	if !over(fa) || !over(fb) || fb.Coming(20, false) {
		t.Error("the push is not over")
	}
	for i, l := range []*taker{a, b} {
		if len(l.spans) != 20 || len(l.bytes) != 20*size {
			t.Errorf("layer %d was offered %v", i, l.spans)
		}
		for n, s := range l.spans {
			if at := (2*(s-1) + i) * size; !bytes.Equal(l.bytes[n*size:][:size], w.blob[at:][:size]) {
				t.Errorf("span %d of layer %d is wrong", s, i)
			}
		}
	}
	if w.said.Len() > 0 {
		t.Error(w.said.String())
	}
}

// TestNotLacked: what no layer lacks is not asked for, and what a request brings of it is dropped.
func TestNotLacked(t *testing.T) {
	goOn := make(chan struct{})
	w := begin(t, 40, nil)
	w.eventually("the room is full", func() bool { return w.asked.Load() == 4 })
	a := &taker{goOn: goOn, has: map[int]bool{}}
	for i := 9; i < 20; i++ {
		a.has[i] = true
	}
	w.open(0, a)
	if f := w.feed(1, "example.org/other"); f.Coming(20, false) {
		t.Error("a repository that vouches for nothing is believed")
	} else {
		f.Open(&taker{})
	}
	close(goOn)
	<-w.ended
	got := slices.DeleteFunc(a.taken(), func(i int) bool {
		return i == 9 || i == 10 // the fifth request may have been waiting for room already
	})
	slices.Sort(got)
	if n := w.asked.Load(); n > 6 || !slices.Equal(got, []int{1, 2, 3, 4, 5, 6, 7, 8, 20}) {
		t.Errorf("%d requests, %v taken", n, got)
	}
}

// TestOfNoUse: a copy that does not come, or is wrong, is over at once, and said to be of no use
// once.
func TestOfNoUse(t *testing.T) {
	for name, c := range map[string]struct {
		bad    int
		answer http.HandlerFunc
	}{
		"wrong": {bad: 2},
		"gone":  {answer: http.NotFound},
		"short": {answer: func(rw http.ResponseWriter, r *http.Request) {
			http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(make([]byte, 3*size+5)))
		}},
		"silent": {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := begin(t, 30, c.answer)
			f := w.open(0, &taker{bad: c.bad})
			select {
			case <-f.Over():
			case <-time.After(10 * time.Second):
				t.Error("it is not over")
			}
			if f.Coming(15, false) {
				t.Error("it is coming")
			}
			<-w.ended
			if n := strings.Count(w.said.String(), "of no use"); n != 1 {
				t.Errorf("it was said %d times: %s", n, w.said.String())
			}
		})
	}
}

// TestNoRoom: a push that others keep from its room is over soon, and says nothing.
func TestNoRoom(t *testing.T) {
	first := begin(t, 40, nil)
	first.eventually("the room is full", func() bool { return first.asked.Load() == 4 })
	second := first.all.Begin(t.Context(), first.push.Copy)
	start := time.Now()
	second.Run(2, func(int) int64 { return size })
	if took := time.Since(start); took > 2*roomless {
		t.Errorf("it took %v", took)
	}
	if first.said.Len() > 0 {
		t.Error(first.said.String())
	}
}
