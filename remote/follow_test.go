package remote

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFollow: who follows requests sees each as the network does, and none of what it was signed
// with.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, cdn, tokens := newRegistry("reg.test"), newRegistry("cdn.test"),
			newTokenServer(time.Hour, true)
		g.auth = tokens.check
		g.fault = signer{life: time.Minute, to: cdn}.redirect
		gone := 0
		cdn.auth = func(*http.Request) (string, int) {
			if gone++; gone == 1 {
				return "", http.StatusServiceUnavailable
			}
			time.Sleep(time.Second)
			return "", 0
		}
		defer net.serve("reg.test", g)()
		defer net.serve("cdn.test", cdn)()
		defer net.serve("auth.test", tokens)()
		var mu sync.Mutex
		var all []*Request
		c := net.client(Config{Follow: func(q *Request) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, q)
		}})
		defer c.Close()
		d := cdn.add(randomBytes(10_000))
		began := time.Now()
		p := make([]byte, 5000)
		if err := mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(t.Context(), p, 10); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, q := range all {
			s := q.Sent()
			got = append(got, fmt.Sprintf("%s %s %s %d", s.Host, strings.SplitN(s.What, "/", 2)[0],
				s.Range, s.Status))
			if s.Repository != "reg.test/a/b" || !s.Over || strings.Contains(s.What, "sig") {
				t.Errorf("%+v", s)
			}
		}
		want := []string{
			"reg.test blobs bytes=10-5009 401", "auth.test token  200",
			"reg.test blobs bytes=10-5009 307", "cdn.test blobs bytes=10-5009 503",
			"reg.test blobs bytes=10-5009 307", "cdn.test blobs bytes=10-5009 206",
		}
		if !slices.Equal(got, want) {
			t.Errorf("requests %q", got)
		}
		if n := c.Stats().Requests; n != uint64(len(all)) {
			t.Errorf("%d requests are counted, %d shown", n, len(all))
		}
		last := all[len(all)-1].Sent()
		if last.Bytes != 5000 || last.First.Sub(last.At) != time.Second || last.Last.Before(last.First) ||
			last.At.Before(began) {
			t.Errorf("times of %+v", last)
		}
	})
}
