// Package cri talks to containerd's CRI plugin as a kubelet does: pods,
// containers, exec and logs, by gRPC.
package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mica-snapshotter/mica/integration/node"
)

// Client speaks CRI to a node's containerd.
type Client struct {
	Images  runtimeapi.ImageServiceClient
	Runtime runtimeapi.RuntimeServiceClient

	conn   *grpc.ClientConn
	cgroup string
	logs   string
}

// Dial connects to a node that has the CRI plugin. Pods log below dir.
func Dial(n *node.Node, dir string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+n.Address(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial CRI: %w", err)
	}
	return &Client{
		Images:  runtimeapi.NewImageServiceClient(conn),
		Runtime: runtimeapi.NewRuntimeServiceClient(conn),
		conn:    conn, cgroup: "/" + n.Namespace(), logs: dir,
	}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Ready waits until the runtime and its network are.
func (c *Client) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		resp, err := c.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
		if err == nil {
			for _, cond := range resp.Status.Conditions {
				if required := cond.Type == runtimeapi.RuntimeReady ||
					cond.Type == runtimeapi.NetworkReady; required && !cond.Status {
					err = errors.Join(err,
						fmt.Errorf("%s: %s: %s", cond.Type, cond.Reason, cond.Message))
				}
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for CRI: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Pull pulls an image and returns its ID.
func (c *Client) Pull(ctx context.Context, ref string) (string, error) {
	resp, err := c.Images.PullImage(ctx,
		&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	return resp.ImageRef, nil
}

// Pod is a sandbox with what CreateContainer wants to know of it.
type Pod struct {
	ID     string
	Config *runtimeapi.PodSandboxConfig
}

// RunPod starts a sandbox with a network of its own.
func (c *Client) RunPod(ctx context.Context, name string) (*Pod, error) {
	logs := filepath.Join(c.logs, name)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, err
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		Labels: map[string]string{"io.kubernetes.pod.namespace": "default",
			"io.kubernetes.pod.name": name, "io.kubernetes.pod.uid": name},
		Hostname:     name,
		LogDirectory: logs,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: c.cgroup},
	}
	resp, err := c.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, fmt.Errorf("run pod %s: %w", name, err)
	}
	return &Pod{ID: resp.PodSandboxId, Config: config}, nil
}

// Run creates and starts a container in a pod and returns its ID. Without argv
// it runs the image's command.
func (c *Client) Run(ctx context.Context, pod *Pod, image, name string, argv ...string) (string, error) {
	return c.RunConfig(ctx, pod, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  argv,
	})
}

// RunConfig is Run of a container with more than a command. Log and labels are as the kubelet sets
// them.
func (c *Client) RunConfig(
	ctx context.Context, pod *Pod, config *runtimeapi.ContainerConfig,
) (string, error) {
	name, of := config.Metadata.Name, pod.Config.Metadata
	config.LogPath = logPath(name)
	config.Linux = &runtimeapi.LinuxContainerConfig{}
	config.Labels = map[string]string{
		"io.kubernetes.pod.namespace": of.Namespace, "io.kubernetes.pod.name": of.Name,
		"io.kubernetes.pod.uid": of.Uid, "io.kubernetes.container.name": name,
	}
	created, err := c.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod.ID, SandboxConfig: pod.Config, Config: config,
	})
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", name, err)
	}
	if _, err := c.Runtime.StartContainer(ctx,
		&runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return "", fmt.Errorf("start container %s: %w", name, err)
	}
	return created.ContainerId, nil
}

func logPath(name string) string { return name + ".log" }

// Output is Run of a command that ends; it returns what the command has printed.
func (c *Client) Output(
	ctx context.Context, pod *Pod, image, name string, argv ...string,
) (string, error) {
	id, err := c.Run(ctx, pod, image, name, argv...)
	if err != nil {
		return "", err
	}
	code, err := c.Wait(ctx, id)
	if err != nil {
		return "", err
	}
	log, err := os.ReadFile(filepath.Join(pod.Config.LogDirectory, logPath(name)))
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for line := range strings.Lines(string(log)) { // time, stream, tag, text
		if parts := strings.SplitN(line, " ", 4); len(parts) == 4 {
			out.WriteString(parts[3])
		}
	}
	if code != 0 {
		return "", fmt.Errorf("container %s: exit code %d: %s", name, code, &out)
	}
	return out.String(), nil
}

// Wait waits until a container has ended and returns its exit code.
func (c *Client) Wait(ctx context.Context, id string) (int32, error) {
	for {
		resp, err := c.Runtime.ContainerStatus(ctx,
			&runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return 0, fmt.Errorf("status of container %s: %w", id, err)
		}
		if resp.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return resp.Status.ExitCode, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for container %s: %w", id, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Exec runs a command in a running container and returns what it prints.
func (c *Client) Exec(ctx context.Context, id string, argv ...string) (string, error) {
	resp, err := c.Runtime.ExecSync(ctx,
		&runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: argv, Timeout: 60})
	if err != nil {
		return "", fmt.Errorf("exec %v: %w", argv, err)
	}
	if resp.ExitCode != 0 {
		return "", fmt.Errorf("exec %v: exit code %d: %s", argv, resp.ExitCode, resp.Stderr)
	}
	return string(resp.Stdout), nil
}

// RemovePod stops and removes a pod with all its containers.
func (c *Client) RemovePod(ctx context.Context, pod *Pod) error {
	if _, err := c.Runtime.StopPodSandbox(ctx,
		&runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID}); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if _, err := c.Runtime.RemovePodSandbox(ctx,
		&runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.ID}); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return nil
}
