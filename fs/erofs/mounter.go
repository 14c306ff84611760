package erofs

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mountTime is the Limit of a Mounter that has none. Nothing that a mount needs comes from the
// network.
const mountTime = time.Minute

// Mounter mounts what this process serves itself over FUSE: a child process does it, and waits in
// this one's stead for the answers that a mount needs. The child is started by the first mount, or
// before it by Warm, and stays until Close: its memory is 3 MB beside what it shares with this
// process, and to start one takes as long as all mounts of a pull. If this process dies, the child
// does not finish its mount. All methods but Close may run in parallel. The zero value is ready;
// Close it.
type Mounter struct {
	// Limit is how long one mount may take; then it has failed, and its child is killed and left to
	// itself: the kernel hangs. 0: a minute.
	Limit time.Duration

	running sync.WaitGroup // of each child that is not left to itself

	mu    sync.Mutex
	child *child // nil: none runs
}

// child is a running child, which answers one request at a time.
type child struct {
	process *os.Process
	in      io.WriteCloser
	out     io.ReadCloser
	ask     *json.Encoder
	told    *json.Decoder
	left    chan struct{} // closed when nobody is to wait for it
}

// errHangs is why a mount has failed that took longer than Limit.
var errHangs = errors.New("the kernel does not finish the mount")

// make has the child make a mount. The error is about the child.
func (c *child) make(job order, limit time.Duration) (got outcome, err error) {
	late := time.AfterFunc(limit, func() {
		_ = c.process.Kill() // which a mount that hangs may survive
		_ = c.out.Close()
	})
	if err = c.ask.Encode(job); err == nil {
		err = c.told.Decode(&got)
	}
	if late.Stop() {
		return got, err
	}
	close(c.left)
	return outcome{}, fmt.Errorf("%w: waited %v", errHangs, limit)
}

// order is a mount that a child is to make; a layer's, or an overlay over one.
type order struct {
	Index, Device, Dir string
	Options            Options
	Overlay            []string // lower, upper and work directory
}

// outcome is what came of it. An errno passes as such, for errors.Is.
type outcome struct {
	Backing Backing
	Err     string
	Errno   unix.Errno
}

func (o outcome) error() error {
	if o.Err == "" {
		return nil
	}
	return &childError{o.Err, o.Errno}
}

// childError is an error that a child has met.
type childError struct {
	text  string
	errno unix.Errno
}

func (e *childError) Error() string { return e.text }

func (e *childError) Is(target error) bool {
	return e.errno != 0 && e.errno.Is(target) || target == e.errno
}

// Warm starts the child, so that the next mount need not wait for that.
func (m *Mounter) Warm() {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, _ = m.readyLocked() // the mount will meet the error
}

// Mount is the function Mount, for a device on one of this process's own FUSE mounts.
func (m *Mounter) Mount(index, device, dir string, o Options) (Backing, error) {
	job := order{Index: index, Device: device, Dir: dir, Options: o}
	for _, p := range []*string{&job.Index, &job.Device, &job.Dir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return o.Backing, fmt.Errorf("mount erofs %s at %s: %w", index, dir, err)
		}
		*p = abs
	}
	// A new mount's queue is found by being new: see newErofs.
	creating.Lock()
	defer creating.Unlock()
	got, err := m.do(job)
	if err == nil {
		err = got.error()
	}
	return got.Backing, err
}

// overlay mounts an overlay whose lower directory is on one of this process's own FUSE mounts, or
// over one.
func (m *Mounter) overlay(lower, upper, work, dir string) error {
	got, err := m.do(order{Dir: dir, Overlay: []string{lower, upper, work}})
	if err == nil {
		err = got.error()
	}
	return err
}

// do has the child make a mount.
func (m *Mounter) do(job order) (outcome, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for try := 0; ; try++ {
		c, err := m.readyLocked()
		if err != nil {
			return outcome{}, fmt.Errorf("child for mounts: %w", err)
		}
		got, err := c.make(job, cmp.Or(m.Limit, mountTime))
		if err == nil {
			return got, nil
		}
		m.dismissLocked()
		if try > 0 || errors.Is(err, errHangs) {
			return outcome{}, fmt.Errorf("child for mounts: %w", err)
		}
		// It was killed.
	}
}

// readyLocked returns the child.
func (m *Mounter) readyLocked() (*child, error) {
	if m.child != nil {
		return m.child, nil
	}
	cmd := exec.Command("/proc/self/exe", mountVerb)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	// What it waits for at our death it is to give up: our successor mounts by itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started, ended, left := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		// Pdeathsig is sent when the thread ends that started the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // however it ended
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	m.running.Go(func() {
		select {
		case <-ended:
		case <-left:
		}
	})
	m.child = &child{
		process: cmd.Process, in: in, out: out,
		ask: json.NewEncoder(in), told: json.NewDecoder(out), left: left,
	}
	return m.child, nil
}

// dismissLocked lets the child end, when it has done what it is at.
func (m *Mounter) dismissLocked() {
	_ = m.child.in.Close()
	m.child = nil
}

// Close ends the child and waits for it.
func (m *Mounter) Close() {
	m.mu.Lock()
	if m.child != nil {
		m.dismissLocked()
	}
	m.mu.Unlock()
	m.running.Wait()
}

// runMounts is the child: it makes the mounts that in asks for until in ends.
func runMounts(in io.Reader, out io.Writer) error {
	asked, tell := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var job order
		if err := asked.Decode(&job); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read what to mount: %w", err)
		}
		var got outcome
		var err error
		if o := job.Overlay; len(o) == 3 {
			err = newMount("overlay", []param{
				{"source", "mica-probe"}, {"lowerdir", escapeOverlay(o[0])}, {"upperdir", escapeOverlay(o[1])}, {"workdir", escapeOverlay(o[2])},
			}, 0, job.Dir, nil)
		} else {
			got.Backing, err = Mount(job.Index, job.Device, job.Dir, job.Options)
		}
		if err != nil {
			got.Err = err.Error()
			errors.As(err, &got.Errno)
		}
		if err := tell.Encode(got); err != nil {
			return fmt.Errorf("tell what was mounted: %w", err)
		}
	}
}
