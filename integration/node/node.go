// Package node runs what a machine of a cluster runs: containerd, its shims
// and micad, in a directory of their own, beside any other node on the same
// machine. It needs root. Tests and the demo build on it, so it knows nothing
// of testing.
//
// A Node's methods may be called in parallel, except for those that start or
// stop its daemons. Close ends all that the node has started: containers and
// shims too, which outlive containerd by design, then mounts, control groups
// and files.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
)

// Options says what a node runs.
type Options struct {
	Mode        string // micad's mode: erofs, fuse, local; "": its own choice
	DemandOnly  bool   // micad fetches what containers read, and nothing ahead of them
	Micad       string // more of micad's configuration, TOML at the top level
	MicadRemote string // more of its section remote
	MicadEnv    []string
	Containerd  string // more of containerd's configuration, TOML
	Bare        bool   // containerd knows of micad only its name and its address
	CRI         *CRI   // nil: containerd runs without its CRI plugin
	Content     bool   // micad is containerd's content plugin, see SwitchContent
	BuildKit    bool   // containerd has BuildKit's plugin, Builder
	Setup       bool   // containerd knows nothing of micad but what mica setup writes
	Traces      string // URL of a collector of OpenTelemetry's; "": there are no traces
	NoMicad     bool   // only containerd's own snapshotters
	Keep        bool   // micad runs under micad keep, which holds its mounts and starts it again
	MicadBinary string // path of micad; "": that of Path
	Disk        int64  // bytes of a disk of micad's own that holds its root; 0: it is a directory
}

// Node is a containerd with Mica beside it. Make one with Start.
type Node struct {
	Dir string // root of all the node's files

	opts Options

	containerd *Process
	micad      *Process // or its keeper
	disk       *Disk

	mu     sync.Mutex
	client *containerd.Client
}

// Start makes a node in a new directory below base ("": os.TempDir()) and
// waits until it can be used. base must be on a file system that overlayfs
// takes as upper directory.
func Start(ctx context.Context, base string, opts Options) (*Node, error) {
	dir, err := os.MkdirTemp(base, "node") // short: paths of UNIX sockets end at 108 bytes
	if err != nil {
		return nil, err
	}
	n := &Node{Dir: dir, opts: opts}
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) start(ctx context.Context) error {
	if err := os.MkdirAll(n.HostsDir(), 0o755); err != nil {
		return err
	}
	if n.opts.CRI != nil {
		if err := n.opts.CRI.prepare(n); err != nil {
			return err
		}
	}
	if n.opts.Disk > 0 {
		var err error
		if n.disk, err = NewDisk(ctx, filepath.Join(n.Dir, "disk"), n.MicadRoot(), n.opts.Disk); err != nil {
			return err
		}
	}
	if !n.opts.NoMicad {
		if err := n.StartMicad(ctx); err != nil {
			return err
		}
	}
	return n.StartContainerd(ctx)
}

// Address is the path of containerd's socket.
func (n *Node) Address() string { return filepath.Join(n.Dir, "c.sock") }

// MicadAddress is the path of micad's socket.
func (n *Node) MicadAddress() string { return filepath.Join(n.Dir, "m.sock") }

// BuilderAddress is the path of micad's socket for BuildKit.
func (n *Node) BuilderAddress() string { return filepath.Join(n.Dir, "b.sock") }

// MicadRoot is the directory with all of micad's state.
func (n *Node) MicadRoot() string { return filepath.Join(n.Dir, "mica") }

// HostsDir is the directory of hosts.toml files that containerd and micad read.
func (n *Node) HostsDir() string { return filepath.Join(n.Dir, "certs.d") }

// ContentRoot is the folder of containerd's content store.
func (n *Node) ContentRoot() string {
	return filepath.Join(n.Dir, "containerd/io.containerd.content.v1.content")
}

// SwitchContent makes micad containerd's content plugin from the next starts of both on, or not.
func (n *Node) SwitchContent(on bool) { n.opts.Content = on }

// Log returns the path of the log of a daemon: containerd or micad.
func (n *Node) Log(daemon string) string { return filepath.Join(n.Dir, daemon+".log") }

// ContainerdPID is the process id of containerd.
func (n *Node) ContainerdPID() int { return n.containerd.PID() }

// StartMicad starts micad with the node's state and waits for its socket.
func (n *Node) StartMicad(ctx context.Context) error {
	bin, err := n.micadBinary()
	if err != nil {
		return err
	}
	config := filepath.Join(n.Dir, "micad.toml")
	if err := os.WriteFile(config, []byte(n.micadConfig()), 0o644); err != nil {
		return err
	}
	env, err := n.environment()
	if err != nil {
		return err
	}
	argv := []string{bin, "--address", n.MicadAddress(), "--root", n.MicadRoot(), "--config", config}
	if n.opts.Keep {
		argv = slices.Insert(argv, 1, "keep")
	}
	n.micad, err = StartProcess(ctx, "micad", n.Log("micad"), append(env, n.opts.MicadEnv...), argv, func(ctx context.Context) error {
		return dial(ctx, n.MicadAddress())
	})
	return err
}

func (n *Node) micadBinary() (string, error) {
	if n.opts.MicadBinary != "" {
		return n.opts.MicadBinary, nil
	}
	return Binary("micad")
}

// StopMicad ends micad as a service manager would, and its keeper.
func (n *Node) StopMicad() error {
	p := n.micad
	n.micad = nil
	return p.Stop()
}

// KillMicad ends micad, and its keeper, without a chance to do anything.
func (n *Node) KillMicad() {
	n.micad.Kill()
	n.micad = nil
}

// RestartMicad ends micad and starts it again on the same state.
func (n *Node) RestartMicad(ctx context.Context) error {
	if err := n.StopMicad(); err != nil {
		return err
	}
	return n.StartMicad(ctx)
}

// StartContainerd starts containerd with the node's state and waits until it serves.
func (n *Node) StartContainerd(ctx context.Context) error {
	bin, err := Binary("containerd")
	if err != nil {
		return err
	}
	text := n.containerdConfig()
	if c := n.opts.CRI; c != nil && c.K3s {
		if text, err = n.k3sConfig(); err != nil {
			return err
		}
	}
	config := filepath.Join(n.Dir, "containerd.toml")
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	if n.opts.Setup {
		if _, err := n.Mica(ctx, n.SetupArgs("--yes")...); err != nil {
			return err
		}
	}
	env, err := n.environment()
	if err != nil {
		return err
	}
	n.containerd, err = StartProcess(ctx, "containerd", n.Log("containerd"), env, []string{bin, "--config", config}, n.serving)
	return err
}

// environment is that of the node's daemons.
func (n *Node) environment() ([]string, error) {
	env, err := environment()
	if n.opts.Traces != "" {
		env = append(env, "OTEL_TRACES_EXPORTER=otlp", "OTEL_BSP_SCHEDULE_DELAY=100",
			"OTEL_EXPORTER_OTLP_ENDPOINT="+n.opts.Traces)
	}
	return env, err
}

// SetupArgs are the arguments of mica setup for this node.
func (n *Node) SetupArgs(more ...string) []string {
	if n.opts.BuildKit {
		more = append(more, "--buildkit")
	}
	return append([]string{"setup", "containerd", "--address", n.MicadAddress(), "--containerd-config",
		filepath.Join(n.Dir, "containerd.toml"), "--micad-config", filepath.Join(n.Dir, "micad.toml")}, more...)
}

// StopContainerd ends containerd; containers go on running.
func (n *Node) StopContainerd() error {
	p := n.containerd
	n.containerd = nil
	return p.Stop()
}

// RestartContainerd ends containerd and starts it again on the same state.
func (n *Node) RestartContainerd(ctx context.Context) error {
	if err := n.StopContainerd(); err != nil {
		return err
	}
	return n.StartContainerd(ctx)
}

// serving is nil when containerd answers all its services.
func (n *Node) serving(ctx context.Context) error {
	if err := dial(ctx, n.Address()); err != nil {
		return err
	}
	client, err := n.Client()
	if err != nil {
		return err
	}
	if ok, err := client.IsServing(ctx); err != nil || !ok {
		return fmt.Errorf("containerd serves: %v %w", ok, err)
	}
	_, err = client.Version(ctx)
	return err
}

// Client returns the node's client, made at the first call, for the namespace
// of Namespace. It lives as long as the node, restarts of containerd included.
func (n *Node) Client() (*containerd.Client, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client == nil {
		client, err := containerd.New(n.Address(), containerd.WithDefaultNamespace(n.Namespace()))
		if err != nil {
			return nil, fmt.Errorf("connect to containerd: %w", err)
		}
		n.client = client
	}
	return n.client, nil
}

// Namespace is containerd's namespace for all that is not CRI's. It is the
// node's alone, since it also names the control groups of the containers.
func (n *Node) Namespace() string { return "mica-" + filepath.Base(n.Dir) }

func dial(ctx context.Context, socket string) error {
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return c.Close()
}
