package registry

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestDialer checks that connections made in advance are used, that those that fail are made anew,
// and that those nobody wants are closed.
func TestDialer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var accepted, ended atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			go func() {
				_, _ = c.Read(make([]byte, 1))
				c.Close()
				ended.Add(1)
			}()
		}
	}()
	run := func(c *Client) func(func(context.Context)) bool {
		return func(f func(context.Context)) bool { return c.Go(t.Context(), f) }
	}
	c, err := New(Config{DialTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	d := &c.dialer
	addr := l.Addr().String()
	d.advance(addr, 3, run(c))
	d.advance(addr, 3, run(c)) // there are three
	wait(t, "three connections", func() bool { return accepted.Load() == 3 })
	time.Sleep(50 * time.Millisecond) // until they are offered
	var used []net.Conn
	for range 2 {
		c, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		used = append(used, c)
	}
	if n := accepted.Load(); n != 3 {
		t.Errorf("%d connections, want the three that were made in advance", n)
	}
	c.Close()
	wait(t, "the end of the one that was not used", func() bool { return ended.Load() == 1 })
	for _, c := range used {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("a connection that is in use: %v", err)
		}
		c.Close()
	}
	d.advance(addr, 1, run(c))
	if d.offers[addr].n != 0 {
		t.Error("a closed client makes connections")
	}

	nobody, err := New(Config{DialTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	l.Close()
	nobody.dialer.advance(addr, 2, run(nobody))
	if c, err := nobody.dialer.DialContext(t.Context(), "tcp", addr); err == nil {
		c.Close()
		t.Error("connected to nobody")
	}
}

// TestDialerCloses: closing does not wait for connections that do not come.
func TestDialerCloses(t *testing.T) {
	c, err := New(Config{DialTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	c.dialer.ControlContext = func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}
	c.dialer.advance("127.0.0.1:1", 1, func(f func(context.Context)) bool {
		return c.Go(t.Context(), f)
	})
	<-begun
	start := time.Now()
	c.Close()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("closed after %v", took)
	}
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}
