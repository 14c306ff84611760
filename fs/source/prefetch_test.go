package source

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/remote"
)

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 30 s: %s", what)
		}
	}
}

// prefetchImage returns an image whose registry answers as handle does, the origins of a layer of
// it, and what counts the requests.
func prefetchImage(t *testing.T, handle http.HandlerFunc) (*remote.Image, *Origins, func(name string) int64) {
	t.Helper()
	host, asked := repositories(t, map[string]http.HandlerFunc{"image": handle})
	client, err := remote.New(remote.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	image, err := client.Image(host + "/image:1")
	if err != nil {
		t.Fatal(err)
	}
	o := NewOrigins(client, 0, &Prefetch{}, nil)
	o.Add(host + "/image:1")
	return image, o, asked
}

// asked says whether the piece with a byte of a blob has been asked for.
func (e *Prefetch) asked(blob ocispec.Descriptor, off int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.findLocked(blob, off)
	return p != nil && p.buf != nil
}

// TestPrefetch: a source takes what was fetched early, asks for the rest, and asks for all where
// that is wrong or does not come.
func TestPrefetch(t *testing.T) {
	blob := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	var broken atomic.Bool
	image, o, asked := prefetchImage(t, func(rw http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		serves(blob)(rw, r)
	})
	e := o.prefetch
	d := digest.FromBytes(blob)
	const windows = 64 // the source begins there in the blob
	s := New(o, d, int64(len(blob)), windows, int64(len(blob))-windows)
	read := func(off, n int64, requests int64) {
		t.Helper()
		before := asked("image")
		body, _, err := s.Range(t.Context(), off, n)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, blob[windows+off:windows+off+n]) {
			t.Errorf("read [%d, +%d): %d bytes, %v", off, n, len(got), err)
		}
		if more := asked("image") - before; more != requests {
			t.Errorf("read [%d, +%d): %d requests, want %d", off, n, more, requests)
		}
	}
	ranges := []index.Range{{Off: 1064, Size: 100_000}}
	alone := func(pieces []*piece) Plan { return runsOf(pieces, func(int) int64 { return 0 }) }
	pieces := e.add(&feed{}, s.desc, ranges, 30_000)
	if len(pieces) != 4 || len(e.add(&feed{}, s.desc, ranges, 30_000)) != 0 {
		t.Errorf("%d pieces", len(pieces))
	}
	e.Fetch(t.Context(), image, alone(pieces), 2)
	read(1000, 40_000, 0)
	read(60_000, 60_000, 1) // all that is there, and more
	read(0, 2000, 1)        // begins before it
	read(41_000, 19_000, 0) // what was left
	read(1000, 100_000, 1)  // it was taken
	if e.taken != 0 {
		t.Errorf("%d bytes are left", e.taken)
	}

	pieces = e.add(&feed{}, s.desc, ranges, 30_000)
	e.Fetch(t.Context(), image, alone(pieces), 2)
	pieces[1].buf[7] ^= 1
	s.Suspect(40_000, 5)
	read(31_000, 20_000, 1)
	e.drop(pieces...)

	broken.Store(true)
	pieces = e.add(&feed{}, s.desc, ranges, 30_000)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Fetch(ctx, image, alone(pieces), 2)
	}()
	eventually(t, "they are asked for", func() bool { return e.asked(s.desc, windows+1000) })
	body, _, err := s.Range(t.Context(), 1000, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	<-done
	broken.Store(false)
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob[1064:1164]) {
		t.Errorf("after early requests failed: %q, %v", got, err)
	}
	if e.taken != 0 {
		t.Errorf("%d bytes of requests that failed are left", e.taken)
	}
}

// TestPrefetchRoom: of a copy that is larger than there is room for comes more as readers read;
// what they pass, or ask for themselves, holds nothing up.
func TestPrefetchRoom(t *testing.T) {
	const size, part, request = 2*prefetchBytes + 4<<20, 1 << 20, 4 << 20
	blob := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(blob)
	image, o, asked := prefetchImage(t, serves(blob))
	e := o.prefetch
	desc := ocispec.Descriptor{Digest: digest.FromString("copy"), Size: size}
	s := newCopy(image, e, desc)
	read := func(off, n int64) {
		t.Helper()
		body, _, err := s.Range(t.Context(), off, n)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, blob[off:off+n]) {
			t.Fatalf("read [%d, +%d): %d bytes, %v", off, n, len(got), err)
		}
	}

	runs := runsOf(e.add(&feed{}, desc, []index.Range{{Size: size}}, part), func(int) int64 { return request })
	requests := int64(len(runs))
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Fetch(t.Context(), image, runs, 2)
	}()
	const full = prefetchBytes / request
	eventually(t, "the room is full", func() bool { return e.Unread() == prefetchBytes && asked("image") == full })
	if !s.Planned(prefetchBytes-part, 2*part) || s.Planned(0, prefetchBytes) {
		t.Error("what is planned is not what there is no room for")
	}
	other := ocispec.Descriptor{Digest: digest.FromString("other"), Size: size}
	e.drop(e.add(&feed{}, other, []index.Range{{Size: size}}, part)[1:]...)
	if e.planned(other, 0, size) {
		t.Error("another pull waits for this one's readers")
	}
	e.drop(slices.Clone(e.pieces[other.Digest])...)
	last := int64(size) - request
	read(last, request) // a reader who does not wait
	if n := asked("image"); n != full+1 || s.Planned(last, request) {
		t.Errorf("%d requests, and it is planned: %t", n, s.Planned(last, request))
	}
	for off := int64(part); off < last; off += part { // the first is never read
		eventually(t, "the next piece is asked for", func() bool { return e.asked(s.desc, off) })
		read(off, part)
	}
	<-done
	if n := asked("image"); n != requests {
		t.Errorf("%d requests, want %d", n, requests)
	}
	if n := e.Unread(); n != part {
		t.Errorf("%d bytes are left, want the first piece", n)
	}
	eventually(t, "what readers have passed is dropped", func() bool { e.dropUnread(); return e.Unread() == 0 })
}
