package announce

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// lookupTimeout is how long a registry's name may take to be resolved: containerd has just done it.
const lookupTimeout = 500 * time.Millisecond

// withPort returns a registry's host as references have it, with the port of the connections that
// containerd has there. ok is false where it has none, or has them to several ports.
func withPort(ctx context.Context, pid int, host string) (authority string, ok bool) {
	if pid == 0 {
		return "", false
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", false
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
	return authority, len(ports) == 1
}

// connected returns where a process has made TCP connections to. It asks the connections themselves, by descriptors of its own: the
// tables in /proc have a system's connections, of all processes, and are as slow as its hash table is large.
func connected(pid int) []netip.AddrPort {
	proc, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(proc)
	sockets, err := socketsOf(pid)
	if err != nil {
		return nil
	}
	serves := map[uint16]bool{}
	var peers []netip.AddrPort
	var from []uint16 // the ports at which they are seen
	for fd := range sockets {
		s, err := unix.PidfdGetfd(proc, fd, 0)
		if err != nil {
			continue // it has been closed, or may not be had
		}
		if at, peer, ok := ends(s); ok && peer.IsValid() {
			peers, from = append(peers, peer), append(from, at.Port())
		} else if ok {
			serves[at.Port()] = true
		}
		unix.Close(s)
	}
	var made []netip.AddrPort
	for i, peer := range peers {
		if !serves[from[i]] { // else the peer has made it
			made = append(made, peer)
		}
	}
	return made
}

// ends returns the addresses of a TCP socket that is connected, or listens; the latter has no peer.
func ends(fd int) (at, peer netip.AddrPort, ok bool) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP { // Go's servers are of the latter
		return at, peer, false
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return at, peer, false
	}
	at = addrPort(sa)
	if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 1 {
		return at, peer, err == nil
	}
	if sa, err = unix.Getpeername(fd); err != nil {
		return at, peer, false
	}
	peer = addrPort(sa)
	return at, peer, peer.IsValid()
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
