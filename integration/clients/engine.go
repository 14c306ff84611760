// Package clients runs containerd's clients against a node with Mica.
package clients

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/mica-snapshotter/mica/integration/node"
)

// Namespace is the one in which Docker Engine keeps its images.
const Namespace = "moby"

// features are for runc before 1.2, which Debian 12 has.
const features = `{"features": {"time-namespaces": false}}`

// Engine is a Docker Engine on a node's containerd, whose storage driver is Mica.
type Engine struct {
	*client.Client
	process *node.Process
}

// StartEngine starts dockerd, which make clients builds, and waits until it answers.
func StartEngine(ctx context.Context, n *node.Node, driver string) (*Engine, error) {
	bin, err := node.Binary("dockerd")
	if err != nil {
		return nil, err
	}
	path, err := node.Path()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(n.Dir, "docker") // of all drivers
	config := dir + ".json"
	if err := os.WriteFile(config, []byte(features), 0o600); err != nil {
		return nil, err
	}
	socket := filepath.Join(n.Dir, "d.sock")
	argv := []string{bin, "--config-file", config, "--containerd", n.Address(),
		"--containerd-namespace", Namespace, "--containerd-plugins-namespace", "plugins." + Namespace,
		"--data-root", dir, "--exec-root", dir + "-run", "--pidfile", dir + ".pid",
		"--host", "unix://" + socket, "--storage-driver", driver,
		"--bridge", "none", "--userland-proxy=false", "--iptables=false", "--ip6tables=false"}
	p, err := node.StartProcess(ctx, "dockerd", n.Log("dockerd"), append(os.Environ(), "PATH="+path),
		argv, func(ctx context.Context) error {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			if err != nil {
				return err
			}
			return conn.Close()
		})
	if err != nil {
		return nil, err
	}
	c, err := client.New(client.WithHost("unix://" + socket))
	if err != nil {
		p.Kill()
		return nil, err
	}
	return &Engine{Client: c, process: p}, nil
}

// Close ends dockerd.
func (e *Engine) Close() error { return errors.Join(e.Client.Close(), e.process.Stop()) }

// Pull is docker pull.
func (e *Engine) Pull(ctx context.Context, ref string) error {
	r, err := e.ImagePull(ctx, ref, client.ImagePullOptions{})
	if err != nil {
		return err
	}
	return errors.Join(r.Wait(ctx), r.Close())
}

// Push is docker push, without credentials.
func (e *Engine) Push(ctx context.Context, ref string) error {
	r, err := e.ImagePush(ctx, ref, client.ImagePushOptions{RegistryAuth: "e30="})
	if err != nil {
		return err
	}
	return errors.Join(r.Wait(ctx), r.Close())
}

// Run is docker run of a command, without a network. It returns the container, which has ended, and
// what it wrote, of standard output and error mixed.
func (e *Engine) Run(ctx context.Context, ref string, argv ...string) (id, out string, err error) {
	c, err := e.ContainerCreate(ctx, client.ContainerCreateOptions{
		Config:     &container.Config{Image: ref, Cmd: argv, Tty: true},
		HostConfig: &container.HostConfig{NetworkMode: "none"},
	})
	if err != nil {
		return "", "", err
	}
	if _, err := e.ContainerStart(ctx, c.ID, client.ContainerStartOptions{}); err != nil {
		return c.ID, "", err
	}
	ended := e.ContainerWait(ctx, c.ID, client.ContainerWaitOptions{
		Condition: container.WaitConditionNotRunning,
	})
	select {
	case <-ended.Result:
	case err := <-ended.Error:
		return c.ID, "", err
	}
	logs, err := e.ContainerLogs(ctx, c.ID, client.ContainerLogsOptions{
		ShowStdout: true, ShowStderr: true,
	})
	if err != nil {
		return c.ID, "", err
	}
	defer logs.Close()
	b, err := io.ReadAll(logs)
	return c.ID, string(b), err
}

// Build is docker build of a stage of the Dockerfile in a folder, by the engine's own BuildKit.
func (e *Engine) Build(ctx context.Context, dir, stage, ref string) error {
	return build(ctx, e.DaemonHost(), dir, stage, "--output", "type=moby,name="+ref)
}

// Compose is docker compose in a folder, with Compose's own builder. It returns what was printed.
func (e *Engine) Compose(ctx context.Context, dir string, args ...string) (string, error) {
	return node.Command(ctx, "docker-compose", append([]string{"-H", e.DaemonHost(),
		"--project-directory", dir}, args...)...)
}

// RemoveAll is docker rm of all containers, docker rmi of all images, and docker builder prune.
func (e *Engine) RemoveAll(ctx context.Context) error {
	containers, err := e.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return err
	}
	for _, c := range containers.Items {
		_, err := e.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true})
		if err != nil {
			return err
		}
	}
	if _, err := e.BuildCachePrune(ctx, client.BuildCachePruneOptions{All: true}); err != nil {
		return err
	}
	images, err := e.ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		return err
	}
	for _, i := range images.Items {
		_, err := e.ImageRemove(ctx, i.ID, client.ImageRemoveOptions{Force: true})
		if err != nil {
			return err
		}
	}
	return nil
}

// Save is docker save: an archive of an image.
func (e *Engine) Save(ctx context.Context, ref string) ([]byte, error) {
	r, err := e.ImageSave(ctx, []string{ref})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
