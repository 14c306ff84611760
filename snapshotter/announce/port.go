package announce

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// lookupTimeout is how long a registry's name may take to be resolved: containerd has just done it.
const lookupTimeout = 500 * time.Millisecond

// withPort returns a registry's host as references have it. containerd notes it without its port, so that it is the one of the
// connections that it has there. ok is false where it has them to several. Where none is known, because it asks a mirror or a proxy, or another
// name than the registry's, as of Docker Hub, the registry is taken for one without a port.
func withPort(ctx context.Context, proc, host string) (authority string, ok bool) {
	if proc == "" {
		return host, true
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return host, true
	}
	ports := map[uint16]bool{}
	for _, c := range connected(proc) {
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

// connected returns where a process, given by its folder in /proc, has made TCP connections to.
func connected(proc string) (peers []netip.AddrPort) {
	own := openSockets(proc)
	serves := map[uint16]bool{}
	var all []connection
	for _, name := range []string{"tcp", "tcp6"} {
		for _, c := range connections(readTable(proc + "/net/" + name)) {
			if own[c.inode] && c.listens {
				serves[c.local.Port()] = true
			} else if own[c.inode] {
				all = append(all, c)
			}
		}
	}
	for _, c := range all {
		if !serves[c.local.Port()] {
			peers = append(peers, c.peer)
		}
	}
	return peers
}

// connection is a TCP socket that is connected, or listens.
type connection struct {
	inode       uint64
	local, peer netip.AddrPort
	listens     bool
}

// connections returns those of a /proc/net/tcp or tcp6: proc_pid_net(5).
//
//	sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …
func connections(table []byte) (list []connection) {
	const established, listen = "01", "0A"
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != established && f[3] != listen {
			continue
		}
		c := connection{listens: f[3] == listen}
		var err error
		var ok, ok2 bool
		c.inode, err = strconv.ParseUint(f[9], 10, 64)
		c.local, ok = address(f[1])
		c.peer, ok2 = address(f[2])
		if err == nil && ok && ok2 {
			list = append(list, c)
		}
	}
	return list
}

// address parses ADDRESS:PORT as the kernel writes it: the address in 32-bit words, each in the machine's byte order.
func address(text string) (netip.AddrPort, bool) {
	ip, port, ok := strings.Cut(text, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || len(ip) != 8 && len(ip) != 32 {
		return netip.AddrPort{}, false
	}
	var b []byte
	for ; len(ip) > 0; ip = ip[8:] {
		word, err := strconv.ParseUint(ip[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		b = binary.NativeEndian.AppendUint32(b, uint32(word))
	}
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok
}
