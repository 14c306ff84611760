package registry

import (
	"context"
	"net"
	"net/http"
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

	mu     sync.Mutex
	offers map[string]*offer // by address
}

// offer is the connections to one address that were made in advance.
type offer struct {
	conns chan net.Conn // unbuffered: who made a connection waits here for a request
	n     int           // that wait, or are being made; guarded by dialer.mu
}

func (d *dialer) offerLocked(addr string) *offer {
	o := d.offers[addr]
	if o == nil {
		if len(d.offers) >= maxShared || d.offers == nil {
			d.offers = map[string]*offer{} // what waits ends by itself
		}
		o = &offer{conns: make(chan net.Conn)}
		d.offers[addr] = o
	}
	return o
}

// DialContext is for http.Transport.
func (d *dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	o := d.offerLocked(addr)
	d.mu.Unlock()
	select {
	case conn := <-o.conns:
		return conn, nil
	default:
		return d.Dialer.DialContext(ctx, network, addr)
	}
}

// advance makes connections until n wait for requests, or are on their way. It does not wait for
// them. run runs each in the background.
func (d *dialer) advance(addr string, n int, run func(func(ctx context.Context)) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.offerLocked(addr)
	for o.n < n && run(func(ctx context.Context) {
		d.offer(ctx, o, addr)
		d.mu.Lock()
		defer d.mu.Unlock()
		o.n--
	}) {
		o.n++
	}
}

// offer makes a connection, and closes it again if no request takes it soon.
func (d *dialer) offer(ctx context.Context, o *offer, addr string) {
	conn, err := d.Dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return // who asks for something is told
	}
	t := time.NewTimer(unusedFor)
	defer t.Stop()
	select {
	case o.conns <- conn:
		return
	case <-t.C:
	case <-ctx.Done():
	}
	_ = conn.Close() // nothing was sent over it
}

// Connect makes connections to the repository's first host in advance, until n wait for requests,
// and returns at once. Those that are not used within seconds are closed again.
func (r *Repository) Connect(ctx context.Context, n int) {
	hosts, err := r.Hosts(ctx)
	if err != nil || r.client.Wrap != nil {
		return // who asks for something is told
	}
	with := hosts.With(docker.HostCapabilityPull)
	if len(with) == 0 {
		return
	}
	u := with[0].url(r.name, "", nil)
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); proxy != nil || err != nil {
		return
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	c := r.client
	c.dialer.advance(net.JoinHostPort(u.Hostname(), port), n,
		func(f func(context.Context)) bool { return c.Go(ctx, f) })
}
