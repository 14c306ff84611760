package remote

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// unusedFor is how long a connection that was made in advance waits for a request.
const unusedFor = 5 * time.Second

// dialer makes TCP connections, some of them before a request needs them: a pull knows that it will
// ask for many things at once as soon as it has its first answer.
type dialer struct {
	net.Dialer
	closing chan struct{}
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	ready  map[string][]*advance // by address
}

// advance is a connection made in advance. conn and err are set before done is closed.
type advance struct {
	done chan struct{}
	conn net.Conn
	err  error
}

func newDialer(timeout time.Duration) *dialer {
	return &dialer{
		Dialer:  net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second},
		closing: make(chan struct{}), ready: map[string][]*advance{},
	}
}

// DialContext is for http.Transport.
func (d *dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	for {
		a := d.take(addr)
		if a == nil {
			return d.Dialer.DialContext(ctx, network, addr)
		}
		select {
		case <-a.done:
			if a.err == nil {
				return a.conn, nil
			}
		case <-ctx.Done():
			d.running.Go(a.drop)
			return nil, context.Cause(ctx)
		}
	}
}

func (d *dialer) take(addr string) *advance {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.ready[addr]
	if len(list) == 0 {
		return nil
	}
	if d.ready[addr] = list[1:]; len(list) == 1 {
		delete(d.ready, addr)
	}
	return list[0]
}

// advance makes connections until n wait for requests. It does not wait for them, nor does ctx end
// them: close does.
func (d *dialer) advance(ctx context.Context, addr string, n int) {
	ctx = context.WithoutCancel(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	for range n - len(d.ready[addr]) {
		a := &advance{done: make(chan struct{})}
		d.ready[addr] = append(d.ready[addr], a)
		ctx, cancel := context.WithCancel(ctx)
		d.running.Go(func() {
			select {
			case <-d.closing:
				cancel()
			case <-a.done:
			}
		})
		d.running.Go(func() {
			defer cancel()
			a.conn, a.err = d.Dialer.DialContext(ctx, "tcp", addr)
			close(a.done)
			t := time.NewTimer(unusedFor)
			defer t.Stop()
			select {
			case <-t.C:
			case <-d.closing:
			}
			if d.withdraw(addr, a) {
				a.drop()
			}
		})
	}
}

// withdraw takes a back; false: a request has it.
func (d *dialer) withdraw(addr string, a *advance) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.ready[addr], a)
	if i < 0 {
		return false
	}
	if d.ready[addr] = slices.Delete(d.ready[addr], i, i+1); len(d.ready[addr]) == 0 {
		delete(d.ready, addr)
	}
	return true
}

// drop closes the connection once there is one.
func (a *advance) drop() {
	<-a.done
	if a.conn != nil {
		a.conn.Close()
	}
}

// close closes the connections that no request has used.
func (d *dialer) close() {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		close(d.closing)
	}
	d.mu.Unlock()
	d.running.Wait()
}

// Connect makes connections to the image's first host in advance, until n wait for requests, and
// returns at once. Those that are not used within seconds are closed again.
func (i *Image) Connect(ctx context.Context, n int) {
	set, err := i.client.hostsOf(ctx, i.repo.registry)
	if err != nil {
		return // whoever asks for something is told
	}
	hosts := set.with(docker.HostCapabilityPull)
	if len(hosts) == 0 || i.client.cfg.wrap != nil {
		return
	}
	u := hosts[0].url(i.repo.name, "", nil)
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); proxy != nil || err != nil {
		return
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	i.client.dialer.advance(ctx, net.JoinHostPort(u.Hostname(), port), n)
}
