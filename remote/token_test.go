package remote

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// TestShortToken checks that a token is used that ends before it arrives.
func TestShortToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, s := newRegistry("reg.test"), newTokenServer(time.Second, true)
		d := g.add(randomBytes(1000))
		g.auth = func(r *http.Request) (string, int) {
			if r.Header.Get("Authorization") != "" {
				return "", 0
			}
			return s.check(r)
		}
		defer net.serve("reg.test", g)()
		defer net.serve("auth.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * time.Second)
			s.ServeHTTP(w, r)
		}))()
		c := net.client(Config{})
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		i := mustImage(t, c, "reg.test/a/b:1")
		for range 3 {
			if err := i.Blob(d).ReadAt(ctx, make([]byte, 1000), 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		if s.issued != 3 {
			t.Errorf("%d tokens for three reads", s.issued)
		}
	})
}
