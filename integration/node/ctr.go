package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command runs a program of Path and returns its standard output, unchanged.
// Its error holds the standard error. The program is killed when ctx ends.
func Command(ctx context.Context, name string, args ...string) (string, error) {
	var out bytes.Buffer
	err := CommandTo(ctx, &out, name, args...)
	return out.String(), err
}

// CommandTo is Command, with the standard output written to w as it comes.
func CommandTo(ctx context.Context, w io.Writer, name string, args ...string) error {
	bin, err := Binary(name)
	if err != nil {
		return err
	}
	env, err := environment()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	runtime.LockOSThread() // Pdeathsig is sent when this thread ends
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// Ctr runs ctr on this node, in its namespace.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return Command(ctx, "ctr", n.ctrArgs(args)...)
}

func (n *Node) ctrArgs(args []string) []string {
	return append([]string{"--address", n.Address(), "--namespace", n.Namespace()}, args...)
}

// Mica runs the mica command.
func (n *Node) Mica(ctx context.Context, args ...string) (string, error) {
	return Command(ctx, "mica", args...)
}

// Pull pulls an image by containerd's transfer service, as a node does.
func (n *Node) Pull(ctx context.Context, snapshotter, ref string) error {
	_, err := n.Ctr(ctx, "images", "pull", "--plain-http", "--hosts-dir", n.HostsDir(),
		"--snapshotter", snapshotter, ref)
	return err
}
