package cri

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// Start makes a node with these options, of which CRI must be set, and a client of its CRI plugin.
// micad fetches what is read alone, and the registry has the pods' pause image.
func Start(t *testing.T, r *registry.Registry, opts node.Options) (*node.Node, *Client) {
	t.Helper()
	opts.DemandOnly = true
	opts.CRI.PauseImage = fixture.Push(t, r, "pause", fixture.ProbeImage(t, "pause"))
	var err error
	if opts.CRI.Subnet, err = Subnet(); err != nil {
		t.Fatal(err)
	}
	n := fixture.Node(t, opts)
	if err := n.Trust(r.Host()); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(n, filepath.Join(n.Dir, "pods"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Ready(fixture.Context(t)); err != nil {
		t.Fatal(err)
	}
	return n, c
}

// Subnet finds a network of 254 pods that no interface of this machine has.
func Subnet() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
next:
	for i := 1; i < 255; i++ {
		candidate := &net.IPNet{IP: net.IPv4(10, 233, byte(i), 0), Mask: net.CIDRMask(24, 32)}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && (n.Contains(candidate.IP) || candidate.Contains(n.IP)) {
				continue next
			}
		}
		return candidate.String(), nil
	}
	return "", fmt.Errorf("no free network among %d addresses", len(addrs))
}

// StartPod starts a pod, which is removed at the test's end at the latest.
func StartPod(t *testing.T, c *Client, name string) *Pod {
	t.Helper()
	pod, err := c.RunPod(fixture.Context(t), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a pod that has been removed may be removed again
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.RemovePod(ctx, pod); err != nil {
			t.Error(err)
		}
	})
	return pod
}
