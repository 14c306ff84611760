// Package shaper is a TCP proxy that behaves like a network path: it has a
// round trip time, a bandwidth that all connections share, one for each
// connection, and TCP's slow start. Tests and the demo put it before a
// registry on the same machine, and count bytes and connections with it.
//
// Latency is a delay line: what was read is written half a round trip later
// while more is read meanwhile, limited only by the congestion window. There is
// no loss. Bandwidth is that of downloads; uploads have latency only.
//
//	client ── connection ── Shaper ── connection ── server
//	        ◀── delay line ◀── window, link rate ◀──
package shaper

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Profile describes a path. The zero Profile is a plain proxy.
type Profile struct {
	RTT      time.Duration
	Rate     float64 // bytes per second of all connections together; 0: no limit
	ConnRate float64 // bytes per second of each connection; 0: no limit
}

// Cloud is a registry in the same region: 10 ms and 1 Gbit/s.
var Cloud = Profile{RTT: 10 * time.Millisecond, Rate: 125e6}

// Stats counts what has passed since the last Reset.
type Stats struct {
	Down  int64 // bytes to clients, protocol headers included
	Up    int64 // bytes to the server
	Conns int64 // connections accepted
}

// Shaper is a running proxy. All methods may be called in parallel, but for
// Close and Reopen.
type Shaper struct {
	target string
	addr   string
	wg     sync.WaitGroup

	down, up, conns atomic.Int64

	mu        sync.Mutex
	listener  net.Listener
	cancel    context.CancelFunc
	profile   Profile
	free      time.Time   // when the shared link has sent all that was booked
	exchanges []*Exchange // since the last Reset
}

// Open listens on a free port of 127.0.0.1 and forwards to target until Close.
func Open(target string, p Profile) (*Shaper, error) {
	s := &Shaper{target: target, addr: "127.0.0.1:0", profile: p}
	if err := s.listen(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Shaper) listen() error {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background()) // ended by Close
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		s.addr = l.Addr().String() // later ones are the same
	}
	s.listener, s.cancel = l, cancel
	s.wg.Go(func() { s.accept(ctx, l) })
	return nil
}

// Reopen listens again, at the same address, after Close.
func (s *Shaper) Reopen() error {
	var err error
	for range 100 { // somebody's outgoing connection may have the port for a while
		if err = s.listen(); !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// Addr is the address clients connect to, host:port.
func (s *Shaper) Addr() string { return s.addr }

// SetProfile changes the path for bytes that are sent from now on.
func (s *Shaper) SetProfile(p Profile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.profile = p
}

// Stats returns the counters.
func (s *Shaper) Stats() Stats {
	return Stats{Down: s.down.Load(), Up: s.up.Load(), Conns: s.conns.Load()}
}

// Reset sets the counters to zero and forgets the exchanges.
func (s *Shaper) Reset() {
	s.mu.Lock()
	s.exchanges = nil
	s.mu.Unlock()
	s.down.Store(0)
	s.up.Store(0)
	s.conns.Store(0)
}

// Close cuts all connections and waits until nothing runs any more: clients
// find the port closed. It may be called again.
func (s *Shaper) Close() error {
	s.mu.Lock()
	listener, cancel := s.listener, s.cancel
	s.mu.Unlock()
	cancel()
	err := listener.Close()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Shaper) accept(ctx context.Context, l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return // closed
		}
		s.conns.Add(1)
		s.wg.Go(func() { s.serve(ctx, client.(*net.TCPConn)) })
	}
}

// serve forwards one connection until both directions have ended.
func (s *Shaper) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", s.target)
	if err != nil {
		return // the client sees its connection closed
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()

	s.mu.Lock()
	rtt := s.profile.RTT
	s.mu.Unlock()
	opened := time.Now().Add(rtt) // nothing leaves before the handshake is over
	ex := &exchanges{s: s, conn: server.LocalAddr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		forward(ctx, server, client, func(n int) (time.Time, int) {
			s.up.Add(int64(n))
			ex.sent()
			return later(time.Now(), opened).Add(rtt / 2), n
		}, nil)
	})
	wg.Go(func() {
		forward(ctx, client, server, newSender(s).send, ex.arrived)
	})
	wg.Wait()
}

// piece is bytes on their way, with the time at which they arrive.
type piece struct {
	data []byte
	at   time.Time
}

// forward copies src to dst. plan is told how many bytes stand ready; it says
// how many of them leave now and when they arrive, and may block. arrived, which
// may be nil, is told of bytes as they arrive at dst.
func forward(ctx context.Context, dst, src *net.TCPConn, plan func(n int) (time.Time, int), arrived func(n int)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	line := make(chan piece, 256) // × 64 KiB: more than any window
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(line)
		for {
			buf := make([]byte, 64<<10)
			n, err := src.Read(buf)
			for b := buf[:n]; len(b) > 0; {
				at, m := plan(len(b))
				select {
				case line <- piece{b[:m], at}:
				case <-ctx.Done():
					return
				}
				b = b[m:]
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					_ = dst.SetLinger(0) // a reset stays one
				}
				return
			}
		}
	})
	for p := range line {
		sleepUntil(p.at)
		if arrived != nil {
			arrived(len(p.data)) // before the client can tell
		}
		if _, err := dst.Write(p.data); err != nil {
			src.Close() // ends the reader
			cancel()
			break
		}
	}
	_ = dst.CloseWrite() // fails where the connection has gone
	wg.Wait()
}
