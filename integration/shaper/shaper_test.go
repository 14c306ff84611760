package shaper

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// serve starts a server that answers every path with body, and a shaper before it.
func serve(t *testing.T, body []byte, p Profile) (*Shaper, *http.Client) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body) // clients check what arrives
	}))
	t.Cleanup(srv.Close)
	s, err := Open(srv.Listener.Addr().String(), p)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 8}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, &http.Client{Transport: transport}
}

func get(t *testing.T, c *http.Client, s *Shaper, want []byte) time.Duration {
	t.Helper()
	start := time.Now()
	resp, err := c.Get("http://" + s.Addr())
	if err != nil {
		t.Error(err)
		return 0
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes: %v; want %d", len(got), err, len(want))
	}
	return time.Since(start)
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// A path is never faster than its profile. How much slower it may be depends
// on the machine's load, so that only a generous bound is checked.
func TestProfile(t *testing.T) {
	const rtt = 20 * time.Millisecond
	for _, tt := range []struct {
		name        string
		profile     Profile
		size        int
		first, next time.Duration // least time of a request on a new and on a used connection
	}{
		{"plain", Profile{}, 1 << 20, 0, 0},
		{"latency", Profile{RTT: rtt}, 100, 2 * rtt, rtt},
		// 14,600 + 29,200 + 58,400 ≥ 100,000 bytes: two round trips more
		{"slow start", Profile{RTT: rtt}, 100_000, 4 * rtt, rtt},
		{"rate", Profile{Rate: 10e6}, 2_000_000, 200 * time.Millisecond, 200 * time.Millisecond},
		{"connection's rate", Profile{ConnRate: 10e6}, 2_000_000, 200 * time.Millisecond, 200 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := random(t, tt.size)
			s, c := serve(t, body, tt.profile)
			for i, least := range []time.Duration{tt.first, tt.next} {
				if d := get(t, c, s, body); d < least || d > 2*least+2*time.Second {
					t.Errorf("request %d took %v, want %v or some more", i, d, least)
				}
			}
			st := s.Stats()
			if st.Conns != 1 || st.Down < 2*int64(tt.size) || st.Down > 2*int64(tt.size)+2000 || st.Up == 0 {
				t.Errorf("stats %+v after two bodies of %d bytes", st, tt.size)
			}
			if s.Reset(); s.Stats() != (Stats{}) {
				t.Errorf("stats %+v after Reset", s.Stats())
			}
		})
	}
}

func TestConnectionsShareTheLink(t *testing.T) {
	body := random(t, 500_000)
	s, c := serve(t, body, Profile{RTT: time.Millisecond, Rate: 10e6})
	start := time.Now()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { get(t, c, s, body) })
	}
	wg.Wait()
	if d := time.Since(start); d < 200*time.Millisecond {
		t.Errorf("4 × 0.5 MB at 10 MB/s took %v, want at least 200 ms", d)
	}
}

func TestCloseCutsConnections(t *testing.T) {
	body := random(t, 10<<20)
	s, c := serve(t, body, Profile{RTT: time.Millisecond, Rate: 1e6})
	resp, err := c.Get("http://" + s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("read %d bytes to the end of a connection that was cut", n)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	// the clean-up closes a second time, which must not hang
	s, err = Open("127.0.0.1:1", Profile{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if resp, err := c.Get("http://" + s.Addr()); err == nil {
		resp.Body.Close()
		t.Error("an answer from a server that does not exist")
	}
}
