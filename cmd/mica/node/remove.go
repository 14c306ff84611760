package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/setup"
)

// Remove takes Mica away from the host. Containers that start from now on are containerd's own;
// micad serves those that run, and Remove waits for their end before it ends micad. What lies below
// micad's root stays but for the content of layers, because containerd's metadata has it: a Mica
// that is installed again goes on with both.
func Remove(ctx context.Context, o Options) error {
	if err := foreign(); err != nil {
		return err
	}
	changed, err := o.configure(ctx, setup.Undo)
	if err != nil {
		return err
	}
	if err := o.runtime(ctx, changed, false); err != nil {
		return err
	}
	var told string
	var failed error
	err = until(ctx, func() bool {
		var users []string
		if users, failed = o.users(ctx); failed != nil {
			return true
		}
		if now := strings.Join(users, ", "); now != told && now != "" {
			o.say("waiting for the end of containers that Mica serves: %s", now)
			told = now
		}
		return len(users) == 0
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	if err := o.stop(ctx); err != nil {
		return fmt.Errorf("stop micad: %w", err)
	}
	files := []string{unit, filepath.Join(o.Bin, "micad"), filepath.Join(o.Bin, "mica")}
	if b, err := podFile("/etc/mica/config.toml"); err == nil && o.configured(b) {
		files = append(files, o.Micad)
	}
	for _, path := range files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	o.say("Mica is removed.")
	return nil
}

// users are the containers whose files are Mica's and that run, but for this pod's. containerd,
// which has no mica any more, is told to look for no snapshot when it deletes one of them: without
// that it could delete none.
func (o *Options) users(ctx context.Context) (names []string, err error) {
	c, err := o.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	spaces, err := c.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containerd's namespaces: %w", err)
	}
	for _, space := range spaces {
		ctx := namespaces.WithNamespace(ctx, space)
		all, err := c.ContainerService().List(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the containers of %s: %w", space, err)
		}
		for _, one := range all {
			if one.Snapshotter != "mica" {
				continue
			}
			if one.SnapshotKey != "" {
				one.SnapshotKey = ""
				if _, err := c.ContainerService().Update(ctx, one, "snapshotkey"); err != nil &&
					!errdefs.IsNotFound(err) {
					return nil, fmt.Errorf("update container %s: %w", one.ID, err)
				}
			}
			l := one.Labels
			if uid := os.Getenv(podUID); uid != "" && l["io.kubernetes.pod.uid"] == uid {
				continue
			}
			if runs, err := running(ctx, c, one.ID); err != nil {
				return nil, err
			} else if runs {
				name := strings.Trim(l["io.kubernetes.pod.namespace"]+"/"+
					l["io.kubernetes.pod.name"], "/")
				if name == "" {
					name = space + "/" + one.ID
				}
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// running says whether a container has a process.
func running(ctx context.Context, c *containerd.Client, id string) (bool, error) {
	one, err := c.LoadContainer(ctx, id)
	var task containerd.Task
	if err == nil {
		task, err = one.Task(ctx, nil)
	}
	var status containerd.Status
	if err == nil {
		status, err = task.Status(ctx)
	}
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look at container %s: %w", id, err)
	}
	return status.Status != containerd.Stopped, nil
}

// stop ends a micad that nobody reads from, with what is kept for the next one.
func (o *Options) stop(ctx context.Context) error {
	info, err := o.info(ctx)
	if err == nil {
		if _, err := admin.NewClient(o.socket()).Collect(ctx, true); err != nil {
			o.say("the content of images stays in %s: %v", info.Root, err)
		}
	}
	if systemd() {
		if _, err := os.Stat(unit); err != nil {
			return nil // it is gone already
		}
		if _, err := run(ctx, "systemctl", "disable", "--now", "--quiet", "micad.service"); err != nil {
			return err
		}
		// systemd before 254 keeps nothing of a stopped unit, and does not know the word.
		_, _ = run(ctx, "systemctl", "clean", "--what=fdstore", "micad.service")
		defer func() { _, _ = run(ctx, "systemctl", "daemon-reload") }()
	} else if err == nil {
		if err := syscall.Kill(cmp.Or(keeper(info.PID), info.PID), syscall.SIGTERM); err != nil {
			return err
		}
	}
	if err := until(ctx, func() bool { _, err := o.info(ctx); return err != nil }); err != nil {
		return err
	}
	return unmount(cmp.Or(info.Root, "/var/lib/micad"))
}

// unmount takes away all that is mounted below a folder. This pod's own files may be among it: they
// stay for those who have them open.
func unmount(dir string) error {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(all) { // what was mounted last lies on top
		if m.Mountpoint != dir { // a disk of micad's own
			errs = append(errs, unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}
