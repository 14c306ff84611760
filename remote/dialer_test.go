package remote

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
	d := newDialer(time.Second)
	addr := l.Addr().String()
	d.advance(t.Context(), addr, 3)
	d.advance(t.Context(), addr, 3) // there are three
	var used []net.Conn
	for range 2 {
		c, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		used = append(used, c)
	}
	wait(t, "three connections", func() bool { return accepted.Load() == 3 })
	d.close()
	wait(t, "the end of the one that was not used", func() bool { return ended.Load() == 1 })
	for _, c := range used {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("a connection that is in use: %v", err)
		}
		c.Close()
	}
	d.advance(t.Context(), addr, 1)
	if a := d.take(addr); a != nil {
		t.Error("a closed dialer makes connections")
	}

	nobody := newDialer(time.Second)
	defer nobody.close()
	l.Close()
	nobody.advance(t.Context(), addr, 2)
	if c, err := nobody.DialContext(t.Context(), "tcp", addr); err == nil {
		c.Close()
		t.Error("connected to nobody")
	}
}

// TestDialerCloses: closing does not wait for connections that do not come.
func TestDialerCloses(t *testing.T) {
	d := newDialer(time.Minute)
	begun := make(chan struct{})
	d.ControlContext = func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}
	d.advance(t.Context(), "127.0.0.1:1", 1)
	<-begun
	start := time.Now()
	d.close()
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
