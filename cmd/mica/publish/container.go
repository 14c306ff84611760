package publish

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	// defaultPath is what a container's PATH is where its image names none, as with docker and
	// containerd.
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// runcVerb is the hidden verb that becomes runc.
	runcVerb = "exec-runc"
	// removeTimeout is how long removing a container may take.
	removeTimeout = 30 * time.Second
	// outputDelay is how long output may come after the end of what was started.
	outputDelay = 5 * time.Second
)

// container is one container that runs without containerd.
type container struct {
	runc   string // path of the program
	dir    string // folder of the bundle and of runc's state
	id     string
	rootfs string
}

// newContainer returns a container, not yet running, whose files are at rootfs. dir is an empty
// folder for it.
func newContainer(dir, rootfs string) (*container, error) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		return nil, fmt.Errorf("%w: install runc 1.1 or newer (apt install runc), it runs the "+
			"container", err)
	}
	return &container{runc: runc, dir: dir, id: "mica-" + rand.Text(), rootfs: rootfs}, nil
}

// spec returns what the container is to be: what ctr run --net-host makes of the image, without
// limits, since these would need control groups. User IDs are not in it yet, for they stand in the
// image's files.
func (c *container) spec(
	ctx context.Context, image ocispec.ImageConfig, args []string,
) (*oci.Spec, error) {
	if len(args) == 0 {
		args = append(append(args, image.Entrypoint...), image.Cmd...)
	} else {
		args = append(append([]string{}, image.Entrypoint...), args...)
	}
	if len(args) == 0 {
		return nil, errors.New("the image names no command: give one after --")
	}
	cwd := image.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	var s oci.Spec
	err := oci.ApplyOpts(namespaces.WithNamespace(ctx, "mica"), nil,
		&containers.Container{ID: c.id}, &s,
		oci.WithDefaultSpec(), oci.WithRootFSPath(c.rootfs), oci.WithDefaultPathEnv,
		oci.WithEnv(image.Env), oci.WithProcessArgs(args...),
		oci.WithProcessCwd(cwd), oci.WithHostNamespace(specs.NetworkNamespace),
		oci.WithHostHostsFile, oci.WithHostResolvconf,
		oci.WithNewPrivileges,
		func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Linux.CgroupsPath, s.Linux.Resources = "", nil
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("specification of the container: %w", err)
	}
	return &s, nil
}

// run runs the container, until it ends or ctx does, and removes it. The error is an
// *exec.ExitError where the container's process fails, and ctx's cause where it was ended.
func (c *container) run(
	ctx context.Context, s *oci.Spec, user string, stdout, stderr io.Writer,
) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.dir, "config.json"), b, 0o600); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "profile", runcVerb, "--runc", c.runc, "--id", c.id, "--user", user,
		c.dir)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = stdout, stderr, outputDelay
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run container: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		// Usually the first call ends it all. Where runc has not made the container yet, it must
		// not do so later.
		err = c.remove(ctx)
		if e := cmd.Process.Kill(); e != nil && !errors.Is(e, os.ErrProcessDone) {
			err = errors.Join(err, e)
		}
		<-ended //nolint:errcheck // by a signal, as was asked for
		if err == nil {
			err = context.Cause(ctx)
		}
	}
	return errors.Join(err, c.remove(ctx))
}

// remove ends the container's processes and removes it; no error if it is not there.
func (c *container) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.runc, append(runcFlags(c.dir), "delete", "--force", c.id)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("remove container %s: %w: %s", c.id, err, bytes.TrimSpace(out))
	}
	return nil
}

// runcFlags are the flags of all calls of runc for the container in dir. rootless means: without
// permission to make control groups, go on.
func runcFlags(dir string) []string {
	return []string{"--root", filepath.Join(dir, "runc"), "--rootless=true"}
}

// profileRuncCommand makes the verb that container.run starts: it completes the specification with
// what only the image's files tell, and becomes runc. It is a process of its own, because one that
// serves a mount must not read it.
func profileRuncCommand() *cobra.Command {
	var runc, id, user string
	cmd := &cobra.Command{
		Use:    runcVerb + " DIR",
		Short:  "Run a bundle (used by mica itself)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := setUser(cmd.Context(), filepath.Join(args[0], "config.json"),
				user); err != nil {
				return err
			}
			argv := append(append([]string{runc}, runcFlags(args[0])...), "run", "--bundle",
				args[0], id)
			return fmt.Errorf("%s: %w", runc, unix.Exec(runc, argv, os.Environ()))
		},
	}
	cmd.Flags().StringVar(&runc, "runc", "", "path of runc")
	cmd.Flags().StringVar(&id, "id", "", "the container's name")
	cmd.Flags().StringVar(&user, "user", "", "user, as an image's configuration names it")
	return cmd
}

// setUser looks the user up in the container's files and enters its IDs into the specification at
// path.
func setUser(ctx context.Context, path, user string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s oci.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	opts := []oci.SpecOpts{oci.WithAdditionalGIDs("root")}
	if user != "" {
		opts = []oci.SpecOpts{oci.WithUser(user), oci.WithAdditionalGIDs(user)}
	}
	if err := oci.ApplyOpts(ctx, nil, &containers.Container{}, &s, opts...); err != nil {
		return fmt.Errorf("user %q of the image: %w", user, err)
	}
	if b, err = json.Marshal(s); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
