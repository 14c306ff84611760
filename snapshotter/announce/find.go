package announce

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// containerd is looked for so often at first, and less and less often when it is not found.
const (
	findOften  = 200 * time.Millisecond
	findSeldom = 20 * time.Second
)

// askTimeout is how long a containerd may take to say which plugins it has.
const askTimeout = 2 * time.Second

var errNone = errors.New("no containerd on this machine has micad as a proxy plugin")

// process is a containerd: its socket and its process id; 0: not known.
type process struct {
	address string
	pid     int
}

// find returns the containerd that has a snapshotter's socket as a proxy plugin. containerd itself connects to a
// snapshotter only when it needs it, and does not say where it listens: so all processes of its name are asked. With an address
// it is the one there.
func find(ctx context.Context, address, snapshotter string) (process, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return process{}, err
	}
	for _, proc := range all {
		if name, err := proc.Comm(); err != nil || name != "containerd" || !ofRoot(proc.PID) {
			continue // anybody may have a process of that name
		}
		for _, path := range listening(proc.PID) {
			if !same(fmt.Sprintf("/proc/%d/root%s", proc.PID, path), path) {
				continue // in a container of its own
			}
			if address != "" && same(path, address) || address == "" && uses(ctx, path, snapshotter) {
				return process{path, proc.PID}, nil
			}
		}
	}
	if address != "" {
		return process{address: address}, nil
	}
	if uses(ctx, defaults.DefaultAddress, snapshotter) {
		return process{address: defaults.DefaultAddress}, nil // its process is not to be seen from here
	}
	return process{}, errNone
}

// ofRoot says whether a process is root's.
func ofRoot(pid int) bool {
	var st unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d", pid), &st) == nil && st.Uid == 0
}

// listening returns the UNIX sockets at which a process listens.
func listening(pid int) (paths []string) {
	const acceptsConnections = 1 << 16 // __SO_ACCEPTCON
	sockets, err := socketsOf(pid)
	if err != nil {
		return nil
	}
	own := map[uint64]bool{}
	for _, inode := range sockets {
		own[inode] = true
	}
	fs, err := procfs.NewFS(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return nil
	}
	table, err := fs.NetUNIX()
	if err != nil {
		return nil
	}
	for _, s := range table.Rows {
		if own[s.Inode] && s.Flags&acceptsConnections != 0 && filepath.IsAbs(s.Path) && !strings.HasSuffix(s.Path, ".ttrpc") {
			paths = append(paths, s.Path)
		}
	}
	return paths
}

// socketsOf returns the descriptors of the sockets that a process has open, and their inodes.
func socketsOf(pid int) (map[int]uint64, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return nil, err
	}
	all, err := proc.FileDescriptors()
	if err != nil {
		return nil, err
	}
	sockets := map[int]uint64{}
	for _, fd := range all {
		var inode uint64
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
		if err != nil {
			continue // it has been closed
		}
		if n, err := fmt.Sscanf(target, "socket:[%d]", &inode); n == 1 && err == nil {
			sockets[int(fd)] = inode
		}
	}
	return sockets, nil
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

// Address returns the socket of the containerd that Watch listens to.
func Address(ctx context.Context, o Options) (string, error) {
	p, err := find(ctx, o.Containerd, o.Snapshotter)
	return p.address, err
}
