package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// MicadPID is the process id of micad; 0 where its keeper has none at the moment.
func (n *Node) MicadPID() int {
	if !n.opts.Keep {
		return n.micad.PID()
	}
	for _, pid := range children(n.micad.PID()) {
		if alive(pid) {
			return pid
		}
	}
	return 0
}

// KeeperPID is the process id of micad's keeper.
func (n *Node) KeeperPID() int { return n.micad.PID() }

// ErrNoMicad is returned where micad's keeper has none at the moment.
var ErrNoMicad = errors.New("no micad is running")

// SignalMicad sends a signal to micad itself and returns the process id that it had.
func (n *Node) SignalMicad(sig syscall.Signal) (int, error) {
	pid := n.MicadPID()
	if pid == 0 {
		return 0, ErrNoMicad
	}
	return pid, syscall.Kill(pid, sig)
}

// SignalKeeper sends a signal to micad's keeper.
func (n *Node) SignalKeeper(sig syscall.Signal) error { return n.micad.Signal(sig) }

// AwaitMicad waits until a micad with another process id than old answers, and
// has mounted all layers known from before where restored is true.
func (n *Node) AwaitMicad(ctx context.Context, old int, restored bool) error {
	var last error
	for {
		info, err := n.Info(ctx)
		switch {
		case err != nil:
			last = err
		case info.PID == old:
			last = fmt.Errorf("micad %d still answers", old)
		case restored && info.Restoring:
			last = errors.New("micad is restoring")
		default:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for micad: %w: %w; its log ends:\n%s", ctx.Err(), last, n.micad.Tail(2000))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Info asks micad what it is. An answer takes a second at most.
func (n *Node) Info(ctx context.Context) (admin.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var info admin.Info
	err := admin.NewClient(n.MicadAddress()).Get(ctx, admin.PathInfo, &info)
	return info, err
}

// WithoutMicad kills micad, does something while its keeper cannot start
// another one, and waits until there is one.
func (n *Node) WithoutMicad(ctx context.Context, do func() error) error {
	if err := n.SignalKeeper(syscall.SIGSTOP); err != nil {
		return err
	}
	old, err := n.SignalMicad(syscall.SIGKILL)
	for err == nil && alive(old) && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if err == nil {
		err = do()
	}
	if err := errors.Join(err, n.SignalKeeper(syscall.SIGCONT)); err != nil {
		return err
	}
	return n.AwaitMicad(ctx, old, false)
}

// Upgrade puts another binary in the place of micad's (Options.MicadBinary) and
// tells the keeper to run that.
func (n *Node) Upgrade(ctx context.Context, binary string) error {
	old := n.MicadPID()
	next := n.opts.MicadBinary + ".new"
	if err := CopyFile(next, binary); err != nil {
		return err
	}
	if err := os.Rename(next, n.opts.MicadBinary); err != nil {
		return err
	}
	if err := n.SignalKeeper(syscall.SIGHUP); err != nil {
		return err
	}
	return n.AwaitMicad(ctx, old, false)
}

// CopyFile copies an executable.
func CopyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Reboot ends everything at once, as a machine that is switched off: containers,
// shims and daemons are killed, mounts gone, sockets and all else of /run too.
// Of the files that were written, those on the node's disk are left as far as
// they had reached it where powerCut is true, else all are. The node is down
// until Boot.
func (n *Node) Reboot(powerCut bool) error {
	// containers first: they must not see the others end
	errs := []error{n.closeClient(), n.killShims()}
	if n.containerd != nil {
		n.containerd.Kill()
		n.containerd = nil
	}
	if n.micad != nil {
		pid := n.MicadPID()
		n.micad.Kill()
		if n.opts.Keep && pid != 0 {
			errs = append(errs, end(pid)) // its keeper does not take it along
		}
		n.micad = nil
	}
	if powerCut {
		errs = append(errs, n.disk.Cut())
	}
	errs = append(errs, unmountBelow(n.Dir), n.removeCgroups())
	for _, path := range []string{n.Address(), n.Address() + ".ttrpc", n.MicadAddress(), filepath.Join(n.Dir, "state")} {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// end kills a process that is not a child of this one and waits for its end.
func end(pid int) error {
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for deadline := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end", pid)
		}
	}
	return nil
}

// Boot starts a node again after Reboot: both daemons at once, as an init
// system does. It returns how long micad took to answer.
func (n *Node) Boot(ctx context.Context) (time.Duration, error) {
	if n.disk != nil {
		if err := n.disk.Mount(); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	if err := n.StartMicad(ctx); err != nil {
		return 0, err
	}
	if err := n.AwaitMicad(ctx, 0, false); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, n.StartContainerd(ctx)
}

func (n *Node) closeClient() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client == nil {
		return nil
	}
	err := n.client.Close()
	n.client = nil
	return err
}

// Disk is the disk that holds micad's root; nil without Options.Disk.
func (n *Node) Disk() *Disk { return n.disk }

// KillContainerd ends containerd at once; containers go on running.
func (n *Node) KillContainerd() {
	n.containerd.Kill()
	n.containerd = nil
}
