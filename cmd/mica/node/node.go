// Package node installs Mica on a node of Kubernetes and takes it away: what the pods of the Helm
// chart do. A pod becomes a process of the host first (Enter). Install then puts programs, unit and
// configuration in their places, has mica setup configure containerd, and starts what has to be
// started. The pod is not needed afterwards: micad is the host's.
//
// Every step looks at what is there, so that a pod that starts again, on a node that is as it shall
// be, changes and restarts nothing. Nothing runs in parallel.
package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/plugins"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/setup"
)

// Options say what a node is.
type Options struct {
	setup.Options        // of the host. Confirm is Install's and Remove's own
	Bin           string // where the host has programs, an absolute path
	Restart       bool   // the service with containerd is restarted when that is needed
}

// podUID names the environment's variable that has the pod's UID.
const podUID = "POD_UID"

// unit is where the host's units are.
const unit = "/etc/systemd/system/micad.service"

// pause is how long is waited before a look that is made again.
const pause = time.Second

// runtimes are the services that have a containerd, by target; of several the one that runs.
var runtimes = map[string][]string{
	"k3s": {"k3s", "k3s-agent"}, "rke2": {"rke2-server", "rke2-agent"},
}

func (o *Options) services() []string {
	if names := runtimes[o.Target]; names != nil {
		return names
	}
	return []string{"containerd"}
}

// client speaks with the host's containerd.
func (o *Options) client() (*containerd.Client, error) {
	address := "/run/containerd/containerd.sock"
	if runtimes[o.Target] != nil {
		address = setup.RancherSocket
	}
	return containerd.New(address, containerd.WithTimeout(pause))
}

// say tells the pod's log something.
func (o *Options) say(format string, args ...any) { fmt.Fprintf(o.Out, format+"\n", args...) }

// socket is micad's.
func (o *Options) socket() string {
	if o.Address != "" {
		return strings.TrimPrefix(o.Address, "unix://")
	}
	return admin.DefaultAddress
}

// info asks micad what it is. An error: none answers.
func (o *Options) info(ctx context.Context) (info admin.Info, err error) {
	return info, admin.NewClient(o.socket()).Get(ctx, admin.PathInfo, &info)
}

// loaded says whether containerd answers, and whether it has mica.
func (o *Options) loaded(ctx context.Context) (answers, has bool) {
	c, err := o.client()
	if err != nil {
		return false, false
	}
	defer c.Close()
	all, err := c.IntrospectionService().Plugins(ctx, "type=="+string(plugins.SnapshotPlugin))
	if err != nil {
		return false, false
	}
	for _, p := range all.Plugins {
		if p.ID == "mica" && p.InitErr == nil {
			return true, true
		}
	}
	return true, false
}

// readTimeout is how long a containerd that was restarted may take until it is as it shall be.
const readTimeout = 5 * time.Minute

var errUnread = errors.New("containerd was restarted, and has not read what mica setup wrote: " +
	"see mica doctor on the node, and containerd's log")

// runtime has containerd read its configuration, where that has changed or where containerd does
// not have mica as it shall, and waits until it has.
func (o *Options) runtime(ctx context.Context, changed, has bool) error {
	done := func() bool { answers, now := o.loaded(ctx); return answers && now == has }
	switch {
	case !changed && done():
		return nil
	case o.Restart && systemd():
		if err := o.restart(ctx); err != nil {
			return err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, readTimeout, errUnread)
		defer cancel()
	default:
		o.say("Restart %s on this node: containerd reads its configuration when it starts.",
			strings.Join(o.services(), " or "))
	}
	return until(ctx, done)
}

// restart restarts the service with containerd. Containers go on.
func (o *Options) restart(ctx context.Context) error {
	for _, name := range o.services() {
		if _, err := run(ctx, "systemctl", "is-active", "--quiet", name); err == nil {
			o.say("restarting %s", name)
			_, err := run(ctx, "systemctl", "restart", name)
			return err
		}
	}
	return fmt.Errorf("no service %s runs on this node: name another target, or set restart=false "+
		"and restart what has containerd", strings.Join(o.services(), " or "))
}

// until waits for something, for as long as ctx lasts.
func until(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	return nil
}

// run runs a program of the host and returns what it prints.
func run(ctx context.Context, name string, args ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err,
			bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), err
}

// configure is mica setup, or its undoing. It returns whether files have changed.
func (o *Options) configure(ctx context.Context,
	do func(context.Context, setup.Options) error,
) (changed bool, err error) {
	s := o.Options
	s.Confirm = func() error { changed = true; return nil }
	if err := do(ctx, s); err != nil && !errors.Is(err, setup.ErrNothing) {
		return false, fmt.Errorf("mica setup %s: %w", o.Target, err)
	}
	return changed, nil
}
