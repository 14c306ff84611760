package announce

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// lookupTimeout is how long a registry's name may take to be resolved: containerd has just done it.
const lookupTimeout = 500 * time.Millisecond

// withPort returns a registry's host as references have it. containerd notes it without its port, so that it is the one of the
// connections that it has there. ok is false where it has them to several. Where none is known, because it asks a mirror or a proxy, or another
// name than the registry's, as of Docker Hub, the registry is taken for one without a port.
func withPort(ctx context.Context, pid int, host string) (authority string, ok bool) {
	if pid == 0 {
		return host, true
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return host, true
	}
	ports := map[uint16]bool{}
	for _, c := range connected(pid) {
		for _, a := range addrs {
			if c.Addr() == a.Unmap() {
				ports[c.Port()] = true
			}
		}
	}
	authority = host
	for port := range ports {
		if port != 443 && port != 80 {
			authority = net.JoinHostPort(host, strconv.Itoa(int(port)))
		}
	}
	return authority, len(ports) <= 1
}

// connected returns where a process has made TCP connections to.
func connected(pid int) (peers []netip.AddrPort) {
	const established, listen = 1, 10 // of enum tcp_state
	fs, own, err := openSockets(pid)
	if err != nil {
		return nil
	}
	// Without IPv6, or IPv4, there is no such table.
	v4, err4 := fs.NetTCP()  //nolint:staticcheck // netlink, which is to be used instead, knows micad's own network alone
	v6, err6 := fs.NetTCP6() //nolint:staticcheck // as above
	if err4 != nil && err6 != nil {
		return nil
	}
	rows := slices.Concat(v4, v6)
	serves := map[uint64]bool{}
	for _, s := range rows {
		if own[s.Inode] && s.St == listen {
			serves[s.LocalPort] = true
		}
	}
	for _, s := range rows {
		if !own[s.Inode] || s.St != established || serves[s.LocalPort] {
			continue
		}
		if addr, ok := netip.AddrFromSlice(s.RemAddr); ok {
			peers = append(peers, netip.AddrPortFrom(addr.Unmap(), uint16(s.RemPort)))
		}
	}
	return peers
}
