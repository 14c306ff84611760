package clients

import (
	"context"
	"os"
	"path/filepath"

	"github.com/mica-snapshotter/mica/integration/node"
)

// BuildKit is a buildkitd with a node's containerd for its worker.
type BuildKit struct {
	process *node.Process
	dir     string
}

// StartBuildKit starts buildkitd, which make clients builds, and waits until it answers.
func StartBuildKit(ctx context.Context, n *node.Node, snapshotter string) (*BuildKit, error) {
	bin, err := node.Binary("buildkitd")
	if err != nil {
		return nil, err
	}
	path, err := node.Path()
	if err != nil {
		return nil, err
	}
	b := &BuildKit{dir: filepath.Join(n.Dir, "buildkit")}
	argv := []string{bin, "--addr", b.address(), "--root", b.dir,
		"--config", os.DevNull, "--oci-worker", "false",
		"--containerd-worker-addr", n.Address(), "--containerd-worker-net", "host",
		"--containerd-worker-snapshotter", snapshotter, "--containerd-worker-gc=false"}
	b.process, err = node.StartProcess(ctx, "buildkitd", n.Log("buildkitd"),
		append(os.Environ(), "PATH="+path), argv, func(ctx context.Context) error {
			_, err := node.Command(ctx, "buildctl", "--addr", b.address(), "debug", "workers")
			return err
		})
	return b, err
}

func (b *BuildKit) address() string { return "unix://" + b.dir + ".sock" }

// Close ends buildkitd.
func (b *BuildKit) Close() error { return b.process.Stop() }

// Build builds a stage of the Dockerfile in a folder, with more arguments of buildctl.
func (b *BuildKit) Build(ctx context.Context, dir, stage string, more ...string) error {
	return build(ctx, b.address(), dir, stage, more...)
}

func build(ctx context.Context, address, dir, stage string, more ...string) error {
	_, err := node.Command(ctx, "buildctl", append([]string{"--addr", address, "build",
		"--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context=" + dir,
		"--local", "dockerfile=" + dir, "--opt", "target=" + stage}, more...)...)
	return err
}
