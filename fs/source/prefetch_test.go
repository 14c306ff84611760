package source

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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
	d := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	const begin = 64 // the source begins there in the blob
	s := New(o, d.Digest, d.Size, begin, d.Size-begin)
	read := func(off, n int64, requests int64) {
		t.Helper()
		before := asked("image")
		body, err := s.Range(t.Context(), off, n)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, blob[begin+off:begin+off+n]) {
			t.Errorf("read [%d, +%d): %d bytes, %v", off, n, len(got), err)
		}
		if more := asked("image") - before; more != requests {
			t.Errorf("read [%d, +%d): %d requests, want %d", off, n, more, requests)
		}
	}
	fetch := func() (stop func()) {
		t.Helper()
		early := e.Early(d, 100_000, 30_000)
		if len(early.portions) != 4 || len(e.Early(d, 100_000, 30_000).portions) != 0 {
			t.Errorf("%d portions", len(early.portions))
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		before := asked("image")
		go func() {
			defer close(done)
			early.Fetch(ctx, image)
		}()
		eventually(t, "all are asked for", func() bool { return asked("image") >= before+4 })
		return func() { cancel(); <-done }
	}
	stop := fetch()
	read(0, 99_000, 0)
	read(60_000, 60_000, 1) // all that is there, and more
	read(41_000, 0, 0)
	read(110_000, 1000, 1)
	s.Suspect(40_000, 5) // in the second portion
	read(0, 29_000, 0)
	read(0, 40_000, 1)
	stop()
	read(0, 1000, 1)
	if e.bytes != 0 || len(e.portions) != 0 {
		t.Errorf("%d bytes of %d blobs are left", e.bytes, len(e.portions))
	}
	if other := e.Early(d, prefetchBytes+1, 30_000); len(other.portions) != 0 {
		t.Error("more is kept than there is room for")
	}

	broken.Store(true)
	stop = fetch()
	body, err := s.Range(t.Context(), 1000, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	stop()
	broken.Store(false)
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob[1064:1164]) {
		t.Errorf("after early requests failed: %q, %v", got, err)
	}
}
