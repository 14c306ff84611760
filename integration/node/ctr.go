package node

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Command runs a program of Path and returns its standard output, unchanged. Its error
// holds the standard error. The program is killed when ctx ends.
func Command(ctx context.Context, name string, args ...string) (string, error) {
	bin, err := Binary(name)
	if err != nil {
		return "", err
	}
	env, err := environment()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Ctr runs ctr on this node, in its namespace.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return Command(ctx, "ctr", append([]string{"--address", n.Address(), "--namespace", n.Namespace()}, args...)...)
}

// Mica runs the mica command.
func (n *Node) Mica(ctx context.Context, args ...string) (string, error) {
	return Command(ctx, "mica", args...)
}

// Pull pulls an image by containerd's transfer service, as a node does.
func (n *Node) Pull(ctx context.Context, snapshotter, ref string) error {
	_, err := n.Ctr(ctx, "images", "pull", "--plain-http", "--snapshotter", snapshotter, ref)
	return err
}

// Run runs argv (none: the image's command) in a new container and returns
// what it wrote to standard output, once it has ended and is removed.
func (n *Node) Run(ctx context.Context, snapshotter, ref, id string, argv ...string) (string, error) {
	return n.Ctr(ctx, append([]string{"run", "--rm", "--net-host", "--snapshotter", snapshotter, ref, id}, argv...)...)
}
