package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// wholly is a host that answers with the whole blob, whatever is asked for, but for ranges that
// honours names. It counts the bytes that it sends, at so many bytes a second; 0: at once.
type wholly struct {
	blob    []byte
	honours func(k int) bool
	refuses bool // ranges, with 416
	breaks  int  // the first body ends after so many bytes; 0: it does not
	rate    int
	sent    atomic.Int64
	asked   atomic.Int64
}

func (h *wholly) serve(k int, w http.ResponseWriter, r *http.Request) bool {
	h.asked.Add(1)
	b := h.blob
	if h.refuses && r.Header.Get("Range") != "" {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return true
	}
	if h.honours != nil && h.honours(k) && r.Header.Get("Range") != "" {
		from, to := rangeOf(r, len(b))
		head(w, from, to, len(b))
		b = b[from : to+1]
	} else {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.WriteHeader(http.StatusOK)
	}
	for n := 0; n < len(b); n += 64 << 10 {
		if h.breaks > 0 && k == 0 && n >= h.breaks {
			panic(http.ErrAbortHandler)
		}
		if h.rate > 0 {
			select {
			case <-time.After(64 << 10 * time.Second / time.Duration(h.rate)):
			case <-r.Context().Done():
			}
		}
		m, err := w.Write(b[n:min(n+64<<10, len(b))])
		h.sent.Add(int64(m))
		if err != nil {
			break
		}
	}
	return true
}

// readRandomly reads ranges of a blob by several readers, until one is wrong.
func readRandomly(t *testing.T, b *Blob, blob []byte, readers, each int) {
	t.Helper()
	var all sync.WaitGroup
	for range readers {
		all.Go(func() {
			for range each {
				n := rand.IntN(200_000) + 1
				off := rand.IntN(len(blob) - n)
				p := make([]byte, n)
				if err := b.ReadAt(t.Context(), p, int64(off)); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(p, blob[off:off+n]) {
					t.Errorf("wrong bytes at %d", off)
					return
				}
			}
		})
	}
	all.Wait()
}

// TestIgnoredRanges reads a blob at random from hosts that ignore ranges in several ways, and
// counts what they send: it is never much more than the blob.
func TestIgnoredRanges(t *testing.T) {
	blob := randomBytes(16 << 20)
	const size = 16 << 20
	for _, tc := range []struct {
		name   string
		host   *wholly
		second *wholly // of two mirrors, the other
		most   int64   // bytes that both send
	}{
		{"always", &wholly{}, nil, size * 5 / 4},
		{"slowly", &wholly{rate: 1 << 20}, nil, size * 5 / 4},
		{"refused", &wholly{refuses: true}, nil, size * 5 / 4},
		{"at first", &wholly{rate: 1 << 20, honours: func(k int) bool {
			return k >= 8
		}}, nil, 2 * size},
		{"every other time", &wholly{honours: func(k int) bool { return k%2 == 1 }}, nil, 2 * size},
		{"and the body breaks off", &wholly{breaks: 12 << 20}, nil, 2 * size},
		{"not by the other mirror", &wholly{}, &wholly{honours: func(int) bool {
			return true
		}}, 2 * size},
		{"by both mirrors", &wholly{}, &wholly{}, size * 5 / 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				m1, m2 := newRegistry("m1.test"), newRegistry("m2.test")
				toml := "server = \"http://m1.test\"\n"
				tc.host.blob = blob
				m1.fault = tc.host.serve
				d := m1.add(blob)
				defer net.serve("m1.test", m1)()
				if tc.second != nil {
					toml = "server = \"http://m2.test\"\n[host.\"http://m1.test\"]\n"
					tc.second.blob = blob
					m2.fault = tc.second.serve
					defer net.serve("m2.test", m2)()
				}
				c := net.client(Config{ConfigPath: hostsToml(t, "reg.test", toml),
					SpoolDir: t.TempDir()})
				defer c.Close()
				readRandomly(t, mustImage(t, c, "reg.test/a/b:1").Blob(d), blob, 8, 5)
				sent := tc.host.sent.Load()
				if tc.second != nil {
					sent += tc.second.sent.Load()
				}
				if sent > tc.most {
					t.Errorf("%d bytes of %d were sent", sent, size)
				}
				if tc.second == nil && tc.host.asked.Load() > 40+8 {
					t.Errorf("%d requests", tc.host.asked.Load())
				}
			})
		})
	}
}

// TestSpool: what has come of a blob stays for the next reader, a reader that leaves ends nothing,
// and what nobody reads goes.
func TestSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := randomBytes(8 << 20)
		net := newNetwork(t)
		g := newRegistry("reg.test")
		h := &wholly{blob: blob, rate: 1 << 20}
		g.fault = h.serve
		d := g.add(blob)
		defer net.serve("reg.test", g)()
		dir := t.TempDir()
		c := net.client(Config{SpoolDir: dir})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		read := func(ctx context.Context, off int64) error {
			p := make([]byte, 1000)
			err := b.ReadAt(ctx, p, off)
			if err == nil && !bytes.Equal(p, blob[off:off+1000]) {
				t.Errorf("wrong bytes at %d", off)
			}
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err := read(ctx, 7<<20)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), "ignores ranges") {
			t.Errorf("a read that ended: %v", err)
		}
		start := time.Now()
		if err := read(t.Context(), 7<<20); err != nil || time.Since(start) > 6*time.Second {
			t.Errorf("the next one: %v after %v", err, time.Since(start))
		}
		time.Sleep(spoolIdle / 2)
		if err := read(t.Context(), 100_000); err != nil {
			t.Error(err)
		}
		// The probe that came while a reader was far ahead has been broken off.
		if n := h.sent.Load(); n > 9<<20 {
			t.Errorf("%d bytes were sent", n)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Errorf("files with a name: %v", left)
		}
		if n := nameless(t, dir); n != 1 {
			t.Errorf("%d files hold the blob", n)
		}
		b.Forget()
		if nameless(t, dir) > 0 {
			t.Error("a spool that is forgotten is still there")
		}
		if err := read(t.Context(), 100_000); err != nil {
			t.Error(err)
		}
		time.Sleep(spoolIdle - time.Minute)
		synctest.Wait()
		if nameless(t, dir) != 1 {
			t.Error("a spool that was read lately is gone")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if nameless(t, dir) > 0 {
			t.Error("a spool that nobody reads is still there")
		}
	})
}

// nameless counts the files without a name that this process has in dir.
func nameless(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err == nil && strings.HasPrefix(to, dir) && strings.HasSuffix(to, "(deleted)") {
			n++
		}
	}
	return n
}

// TestSpoolSuspect: of wrong bytes the whole blob comes again, but not at once.
func TestSpoolSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := randomBytes(1 << 20)
		net := newNetwork(t)
		g := newRegistry("reg.test")
		wrong := bytes.Clone(blob)
		wrong[500_000]++
		h := &wholly{blob: wrong}
		g.fault = h.serve
		d := g.add(blob)
		defer net.serve("reg.test", g)()
		c := net.client(Config{SpoolDir: t.TempDir()})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		p := make([]byte, 1000)
		start := time.Now()
		for {
			if err := b.ReadAt(t.Context(), p, 499_500); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(p, blob[499_500:500_500]) {
				break
			}
			b.Suspect(499_500, 1000)
			time.Sleep(time.Second)
			if time.Since(start) > 10*time.Second {
				h.blob = blob
			}
		}
		if took := time.Since(start); took < spoolAgain || took > 2*spoolAgain {
			t.Errorf("right after %v", took)
		}
		if n := h.asked.Load(); n != 3 {
			t.Errorf("%d requests, want 3: one that tells that ranges are ignored, and two spools", n)
		}
	})
}

// TestSpoolWithoutRoom: where no file can be made, ranges are still read.
func TestSpoolWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := randomBytes(1 << 20)
		net := newNetwork(t)
		g := newRegistry("reg.test")
		h := &wholly{blob: blob}
		g.fault = h.serve
		d := g.add(blob)
		defer net.serve("reg.test", g)()
		c := net.client(Config{SpoolDir: filepath.Join(t.TempDir(), "none")})
		defer c.Close()
		body, err := mustImage(t, c, "reg.test/a/b:1").Blob(d).Range(t.Context(), 700_000, 1000)
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil ||
			!bytes.Equal(p, blob[700_000:701_000]) {
			t.Errorf("%d bytes, %v", len(p), err)
		}
	})
}

// TestIgnoredRangesAlone: of a mirror that ignores ranges before a registry that does not answer,
// blobs come at once but for the first, which finds out.
func TestIgnoredRangesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		m, up := newRegistry("m1.test"), newRegistry("up.test")
		up.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
			hang(nil, 0)(w, r)
			return true
		}
		m.fault = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}
		defer net.serve("m1.test", m)()
		defer net.serve("up.test", up)()
		toml := "server = \"http://up.test\"\n[host.\"http://m1.test\"]\n"
		c := net.client(Config{ConfigPath: hostsToml(t, "reg.test", toml), SpoolDir: t.TempDir()})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a/b:1")
		for k := range 4 {
			blob := bytes.Repeat([]byte{byte(k), 1, 2, 3}, 1<<20)
			d := m.add(blob)
			start := time.Now()
			for _, off := range []int64{3 << 20, 1000, 2 << 20} {
				p := make([]byte, 1000)
				err := i.Blob(d).ReadAt(t.Context(), p, off)
				if err != nil || !bytes.Equal(p, blob[off:off+1000]) {
					t.Errorf("blob %d: %v", k, err)
				}
			}
			if took := time.Since(start); k == 0 && took > 16*time.Second || k > 0 && took > 0 {
				t.Errorf("blob %d took %v", k, took)
			}
		}
	})
}

// TestSpoolFails: a reader is told why no more comes, and the next one has it go on from there.
func TestSpoolFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := randomBytes(4 << 20)
		net := newNetwork(t)
		g := newRegistry("reg.test")
		h := &wholly{blob: blob, breaks: 1 << 20}
		gone := true
		g.fault = func(k int, w http.ResponseWriter, r *http.Request) bool {
			switch {
			case k == 0:
				return h.serve(k, w, r)
			case gone:
				answer(404, "")(w, r)
				return true
			}
			return false
		}
		d := g.add(blob)
		defer net.serve("reg.test", g)()
		c := net.client(Config{SpoolDir: t.TempDir()})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		p := make([]byte, 1000)
		if err := b.ReadAt(t.Context(), p, 3<<20); !errors.Is(err, ErrNotFound) {
			t.Errorf("read of what is gone: %v", err)
		}
		gone = false
		if err := b.ReadAt(t.Context(), p, 3<<20); err != nil ||
			!bytes.Equal(p, blob[3<<20:3<<20+1000]) {
			t.Errorf("read: %v", err)
		}
	})
}
