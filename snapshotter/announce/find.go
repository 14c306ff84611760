package announce

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"golang.org/x/sys/unix"
)

// containerd is looked for so often at first, and less and less often when it is not found.
const (
	findOften  = 200 * time.Millisecond
	findSeldom = 20 * time.Second
)

// askTimeout is how long a containerd may take to say which plugins it has.
const askTimeout = 2 * time.Second

// maxTable bounds what is read of one of the tables in /proc/PID/net, bytes.
const maxTable = 16 << 20

var errNone = errors.New("no containerd on this machine has micad as a proxy plugin")

// process is a containerd: its socket and its folder in /proc; "": not known.
type process struct{ address, proc string }

// find returns the containerd that has a snapshotter's socket as a proxy plugin. containerd itself connects to a
// snapshotter only when it needs it, and does not say where it listens: so all processes of its name are asked. With an address
// it is the one there.
func find(ctx context.Context, address, snapshotter string) (process, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return process{}, err
	}
	for _, comm := range procs {
		p := process{proc: filepath.Dir(comm)}
		if name, err := os.ReadFile(comm); err != nil || string(bytes.TrimSpace(name)) != "containerd" || !ofRoot(p.proc) {
			continue // anybody may have a process of that name
		}
		for _, p.address = range listening(p.proc) {
			if !same(p.proc+"/root"+p.address, p.address) {
				continue // in a container of its own
			}
			if address != "" && same(p.address, address) || address == "" && uses(ctx, p.address, snapshotter) {
				return p, nil
			}
		}
	}
	if address != "" {
		return process{address: address}, nil
	}
	return process{}, errNone
}

// ofRoot says whether a process, given by its folder in /proc, is root's.
func ofRoot(proc string) bool {
	var st unix.Stat_t
	return unix.Stat(proc, &st) == nil && st.Uid == 0
}

// listening returns the UNIX sockets at which a process, given by its folder in /proc, listens.
func listening(proc string) (paths []string) {
	own := openSockets(proc)
	for inode, path := range sockets(readTable(proc + "/net/unix")) {
		if own[inode] && !strings.HasSuffix(path, ".ttrpc") {
			paths = append(paths, path)
		}
	}
	return paths
}

// openSockets returns the inodes of the sockets that a process has open.
func openSockets(proc string) map[uint64]bool {
	own := map[uint64]bool{}
	fds, err := filepath.Glob(proc + "/fd/*")
	if err != nil {
		return own
	}
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if text, ok := strings.CutPrefix(link, "socket:["); ok && err == nil {
			if inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64); err == nil {
				own[inode] = true
			}
		}
	}
	return own
}

// readTable reads a file of /proc/PID/net, or the beginning of a very long one.
func readTable(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxTable))
	if err != nil {
		return nil
	}
	return b
}

// sockets returns the sockets with a path of a /proc/net/unix that somebody listens at, by inode: proc_pid_net(5).
//
//	Num       RefCount Protocol Flags    Type St Inode Path
func sockets(table []byte) map[uint64]string {
	const acceptsConnections = 1 << 16 // __SO_ACCEPTCON
	list := map[uint64]string{}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) != 8 || !strings.HasPrefix(f[7], "/") {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 64)
		inode, err2 := strconv.ParseUint(f[6], 10, 64)
		if err == nil && err2 == nil && flags&acceptsConnections != 0 {
			list[inode] = f[7]
		}
	}
	return list
}

// uses says whether a containerd that answers at address has the snapshotter's socket as a proxy plugin.
func uses(ctx context.Context, address, snapshotter string) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := dial(address)
	if err != nil {
		return false
	}
	defer conn.Close()
	r, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, &introspection.PluginsRequest{Filters: []string{"type==io.containerd.snapshotter.v1"}})
	if err != nil {
		return false
	}
	for _, p := range r.Plugins {
		if same(p.Exports["address"], snapshotter) {
			return true
		}
	}
	return false
}

// same says whether two paths are those of one socket.
func same(a, b string) bool {
	if a == "" {
		return false
	}
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}
