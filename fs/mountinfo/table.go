package mountinfo

import (
	"fmt"
	"io"
	"os"
	"sync"
	"weak"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// byPoint has the mounts of each mount point.
type byPoint map[string][]*mountinfo.Info

// table is the mount table of the process. The kernel tells when it has changed, so that many
// questions in a row, as after a hand-over, have it read once. The zero value is ready.
type table struct {
	mu   sync.Mutex
	file *os.File              // nil: not open
	last weak.Pointer[byPoint] // as read last, until the next garbage collection
}

var mounts table

// read returns the table.
func (t *table) read() (byPoint, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file == nil {
		// By hand, because Go's poller would be told of changes in our place.
		fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open the mount table: %w", err)
		}
		t.file = os.NewFile(uintptr(fd), "/proc/self/mountinfo")
	}
	changed, last := t.changed(), t.last.Value()
	if !changed && last != nil {
		return *last, nil
	}
	t.last = weak.Pointer[byPoint]{} // no error leaves what has changed
	if _, err := t.file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	infos, err := mountinfo.GetMountsFromReader(t.file, nil)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	now := byPoint{}
	for _, i := range infos {
		now[i.Mountpoint] = append(now[i.Mountpoint], i)
	}
	t.last = weak.Make(&now)
	return now, nil
}

// changed says whether the kernel has changed the table since the last call. What it cannot say
// counts as a change.
func (t *table) changed() bool {
	fds := []unix.PollFd{{Fd: int32(t.file.Fd()), Events: unix.POLLPRI}}
	n, err := unix.Poll(fds, 0)
	return n != 0 || err != nil
}
