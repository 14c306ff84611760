package supervisor

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/keeper"
)

// store is the descriptors that are held, oldest first. Unlike systemd it does not watch them: what
// hangs up stays until it is removed, as with FDPOLL=0, which micad sends.
type store struct {
	max     int
	entries []entry
	names   int // length of their names, with colons
}

type entry struct {
	fd   int
	name string
}

func newStore(max int) *store { return &store{max: max} }

// add takes fd over under name. It is closed and false returned if there is no room. An open file
// that is held stays under its old name, as with systemd.
func (s *store) add(name string, fd int) bool {
	for _, e := range s.entries {
		if sameFile(e.fd, fd) {
			unix.Close(fd)
			return true
		}
	}
	if len(s.entries) >= s.max || s.names+len(name)+1 > keeper.MaxNames {
		unix.Close(fd)
		return false
	}
	s.names += len(name) + 1
	s.entries = append(s.entries, entry{fd, name})
	return true
}

// remove closes what is held under name.
func (s *store) remove(name string) {
	kept := s.entries[:0]
	for _, e := range s.entries {
		if e.name == name {
			unix.Close(e.fd)
			s.names -= len(name) + 1
		} else {
			kept = append(kept, e)
		}
	}
	s.entries = kept
}

// list is what a child gets from descriptor 3 on.
func (s *store) list() (fds []int, names []string) {
	for _, e := range s.entries {
		fds = append(fds, e.fd)
		names = append(names, e.name)
	}
	return fds, names
}

func (s *store) clear() {
	for _, e := range s.entries {
		unix.Close(e.fd)
	}
	s.entries, s.names = nil, 0
}

// sameFile tells whether two descriptors are of one open file. Where the kernel has no kcmp(2) they
// never are.
func sameFile(a, b int) bool {
	const kcmpFile = 0 // KCMP_FILE, linux/kcmp.h
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno == 0 && r == 0
}
