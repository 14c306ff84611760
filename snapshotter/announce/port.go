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
// connections that it has there, where that is known. ok is false where it can be more than one.
func withPort(ctx context.Context, proc, host string) (authority string, ok bool) {
	if proc == "" {
		return host, true
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return host, true // by a proxy, then
	}
	ports := map[uint16]bool{}
	for _, c := range connected(proc) {
		for _, a := range addrs {
			if c.Addr() == a.Unmap() {
				ports[c.Port()] = true
			}
		}
	}
	if len(ports) == 0 || ports[443] || ports[80] {
		return host, true
	}
	for port := range ports {
		authority = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	return authority, len(ports) == 1
}

// connected returns where a process, given by its folder in /proc, has TCP connections to.
func connected(proc string) (peers []netip.AddrPort) {
	own := openSockets(proc)
	for _, name := range []string{"tcp", "tcp6"} {
		for inode, peer := range established(readTable(proc + "/net/" + name)) {
			if own[inode] {
				peers = append(peers, peer)
			}
		}
	}
	return peers
}

// established returns the other ends of the connections of a /proc/net/tcp or tcp6, by inode: proc_pid_net(5).
//
//	sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …
func established(table []byte) map[uint64]netip.AddrPort {
	const isEstablished = "01"
	list := map[uint64]netip.AddrPort{}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != isEstablished {
			continue
		}
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if peer, ok := address(f[2]); ok && err == nil {
			list[inode] = peer
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
