package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/remote"
)

// repositories serves a blob in repositories that each answer in a way of their own.
func repositories(t *testing.T, answers map[string]http.HandlerFunc) (host string, asked func(repository string) int64) {
	t.Helper()
	counts := map[string]*atomic.Int64{}
	for name := range answers {
		counts[name] = &atomic.Int64{}
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		answer, ok := answers[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		counts[name].Add(1)
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), func(name string) int64 { return counts[name].Load() }
}

func serves(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// TestOrigins: a layer that several images have brought is read from one that has it, whatever the
// others say.
func TestOrigins(t *testing.T) {
	blob := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	wrong := bytes.Clone(blob)
	wrong[70] ^= 1
	host, asked := repositories(t, map[string]http.HandlerFunc{
		"good": serves(blob), "wrong": serves(wrong),
		"404": status(404), "401": status(401), "403": status(403), "500": status(500), "reset": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"half": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 16-159999/160000")
			w.Header().Set("Content-Length", "159984")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(blob[16:100_016])
			panic(http.ErrAbortHandler)
		},
	})
	client, err := remote.New(remote.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	from := func(patience time.Duration, names ...string) *Source {
		o := NewOrigins(client, patience, &Prefetch{}, nil)
		for _, n := range names {
			o.Add(host + "/" + n + ":1")
		}
		size := int64(len(blob))
		return New(o, digest.FromBytes(blob), size, 16, size-16) // as windows lie in a larger blob
	}
	read := func(s *Source) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		body, err := s.Range(ctx, 0, s.Size())
		if err != nil {
			return err
		}
		defer body.Close()
		p := make([]byte, s.Size())
		if _, err = io.ReadFull(body, p); err == nil && !bytes.Equal(p, blob[16:]) {
			return errors.New("wrong bytes")
		}
		return err
	}
	for _, first := range []string{"404", "401", "403", "500", "reset", "half"} {
		t.Run(first, func(t *testing.T) {
			before := asked("good")
			if err := read(from(time.Minute, "good", first)); err != nil { // the latest is asked first
				t.Error(err)
			}
			if asked(first) == 0 || asked("good") != before+1 {
				t.Errorf("%s was asked %d times, the good one %d", first, asked(first), asked("good")-before)
			}
		})
	}
	t.Run("wrong bytes", func(t *testing.T) {
		s := from(time.Minute, "good", "wrong")
		if err := read(s); err == nil {
			t.Fatal("the wrong one is right")
		}
		s.Suspect(50, 10)
		if err := read(s); err != nil {
			t.Error(err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		start := time.Now()
		if err := read(from(time.Second, "404", "403")); !errors.Is(err, remote.ErrUnauthorized) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took < time.Second || took > 10*time.Second {
			t.Errorf("took %v, with a second's patience", took)
		}
	})
}

// TestManyOrigins: of the images that have brought a layer the latest are kept.
func TestManyOrigins(t *testing.T) {
	o := &Origins{}
	for n := range 3 * 16 {
		o.Add(fmt.Sprintf("r.test/a:%d", n))
	}
	if last := fmt.Sprintf("r.test/a:%d", 3*16-1); len(o.refs) != 16 || o.Latest() != last {
		t.Errorf("%d images, the latest is %s", len(o.refs), o.Latest())
	}
}
