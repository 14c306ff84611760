package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Container is a container that was started in the background.
type Container struct {
	ID  string
	PID int // of its first process

	node *Node
	task containerd.Task // nil of what Exec returns
}

// Run runs argv (none: the image's command) in a new container and returns what it wrote to
// standard output, once it has ended and is removed. Its namespace is ctx's, or else the node's.
func (n *Node) Run(ctx context.Context, snapshotter, ref, id string, argv ...string) (string, error) {
	var out bytes.Buffer
	err := n.RunTo(ctx, &out, snapshotter, ref, id, argv...)
	return out.String(), err
}

// RunTo is Run, with the container's output written to w as it comes. (`ctr run` of containerd 2.4
// closes the output of a container that has ended, and on a busy machine loses the last of it.)
func (n *Node) RunTo(ctx context.Context, w io.Writer, snapshotter, ref, id string, argv ...string) error {
	var stderr bytes.Buffer
	c, err := n.StartContainer(ctx, snapshotter, ref, id, w, &stderr, argv...)
	if err != nil {
		return err
	}
	if err := errors.Join(c.wait(ctx), c.Remove(ctx)); err != nil {
		return fmt.Errorf("container %s: %w: %s", id, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

// wait waits until the container has ended and all of its output has come.
func (c *Container) wait(ctx context.Context) error {
	exited, err := c.task.Wait(c.node.named(ctx))
	if err != nil {
		return err
	}
	status := <-exited
	code, _, err := status.Result()
	if err != nil {
		return err
	}
	c.task.IO().Wait()
	if code != 0 {
		return fmt.Errorf("exit status %d", code)
	}
	return nil
}

// StartContainer starts argv (none: the image's command) in a new container of an image that was
// pulled, with the network of this machine. What it writes to its standard output goes to stdout,
// and to its standard error to stderr, whether containerd is there or not. Where it fails, nothing
// is left.
func (n *Node) StartContainer(ctx context.Context, snapshotter, ref, id string, stdout, stderr io.Writer, argv ...string) (_ *Container, err error) {
	ctx = n.named(ctx)
	defer func() {
		if err != nil {
			err = fmt.Errorf("start container %s: %w", id, err)
		}
	}()
	client, err := n.Client()
	if err != nil {
		return nil, err
	}
	image, err := client.GetImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := unpacked(ctx, image, snapshotter); err != nil {
		return nil, err
	}
	c := &Container{ID: id, node: n}
	created, err := client.NewContainer(ctx, id,
		containerd.WithSnapshotter(snapshotter),
		containerd.WithImage(image),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfigArgs(image, argv), oci.WithHostNamespace("network")))
	if err != nil {
		return nil, errors.Join(err, c.removeSnapshot(ctx, snapshotter))
	}
	task, err := created.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, stdout, stderr)))
	if err != nil {
		return nil, errors.Join(err, c.Remove(ctx))
	}
	if err := task.Start(ctx); err != nil {
		return nil, errors.Join(err, c.Remove(ctx))
	}
	c.PID, c.task = int(task.Pid()), task
	return c, nil
}

// unpacked has containerd unpack the blobs that it has for a snapshotter that did not pull the
// image, as its clients do.
func unpacked(ctx context.Context, image containerd.Image, snapshotter string) error {
	done, err := image.IsUnpacked(ctx, snapshotter)
	if err != nil || done {
		return err
	}
	return image.Unpack(ctx, snapshotter)
}

// Exec starts argv beside the container's first process, as user root; what it
// writes goes to stdout and stderr. What is returned is as a container, but has no
// life of its own: it ends with the container.
func (c *Container) Exec(ctx context.Context, id string, stdout, stderr io.Writer, argv ...string) (*Container, error) {
	ctx = c.node.named(ctx)
	client, err := c.node.Client()
	if err != nil {
		return nil, err
	}
	created, err := client.LoadContainer(ctx, c.ID)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", c.ID, err)
	}
	task, err := created.Task(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", c.ID, err)
	}
	p, err := task.Exec(ctx, id, &specs.Process{Args: argv, Cwd: "/", NoNewPrivileges: true},
		cio.NewCreator(cio.WithStreams(nil, stdout, stderr)))
	if err == nil {
		err = p.Start(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", c.ID, err)
	}
	return &Container{ID: id, PID: int(p.Pid()), node: c.node}, nil
}

// named is ctx with the namespace of containerd's that it has, or else the node's.
func (n *Node) named(ctx context.Context) context.Context {
	if _, has := namespaces.Namespace(ctx); has {
		return ctx
	}
	return namespaces.WithNamespace(ctx, n.Namespace())
}

// removeSnapshot removes what a container that could not be made has left.
func (c *Container) removeSnapshot(ctx context.Context, snapshotter string) error {
	client, err := c.node.Client()
	if err != nil {
		return err
	}
	return ignoreNotFound(client.SnapshotService(snapshotter).Remove(ctx, c.ID))
}

// Signal sends a signal to the container's first process; containerd has no part in it.
func (c *Container) Signal(sig syscall.Signal) error { return syscall.Kill(c.PID, sig) }

// Alive tells whether the container's first process runs.
func (c *Container) Alive() bool { return alive(c.PID) }

// Remove kills the container and removes it with its snapshot.
func (c *Container) Remove(ctx context.Context) error {
	ctx = c.node.named(ctx)
	client, err := c.node.Client()
	if err != nil {
		return err
	}
	created, err := client.LoadContainer(ctx, c.ID)
	if err != nil {
		return ignoreNotFound(err)
	}
	task, err := created.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, containerd.WithProcessKill)
	}
	if err := ignoreNotFound(err); err != nil {
		return fmt.Errorf("end container %s: %w", c.ID, err)
	}
	return ignoreNotFound(created.Delete(ctx, containerd.WithSnapshotCleanup))
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
