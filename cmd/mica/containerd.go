package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/doctor"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
)

// containerdFlags are the flags of the verbs that speak with containerd.
type containerdFlags struct {
	address     string
	snapshotter string
	micad       string // micad's socket; "": the one that containerd has for its snapshotter
}

func (f *containerdFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.address, "containerd-address",
		cmp.Or(os.Getenv("CONTAINERD_ADDRESS"), defaults.DefaultAddress),
		"containerd's socket ($CONTAINERD_ADDRESS)")
	cmd.Flags().StringVar(&f.snapshotter, "snapshotter", "mica",
		"the name that containerd's configuration has for micad")
	cmd.Flags().StringVar(&f.micad, "address", os.Getenv("MICA_ADDRESS"),
		"micad's socket ($MICA_ADDRESS); empty: the one in containerd's configuration")
}

// open returns clients of containerd and of the micad that is its snapshotter. Where one of the two
// is not there, or does not know the other, the error says what to do.
func (f *containerdFlags) open(ctx context.Context) (*containerd.Client, *admin.Client, error) {
	address := reach.SocketPath(f.address)
	if err := dial(ctx, address); err != nil {
		return nil, nil, err
	}
	client, err := containerd.New(address)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	plugin, err := f.plugin(ctx, client)
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	micad := cmp.Or(f.micad, plugin.Exports["address"], admin.DefaultAddress)
	return client, reach.Daemon(micad), nil
}

// dial tries whether containerd listens.
func dial(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("containerd is not running at %s: start it (systemctl start "+
			"containerd), or name its socket with --containerd-address or "+
			"$CONTAINERD_ADDRESS", address)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("containerd's socket %s is for root alone: run this command as root",
			address)
	case err != nil:
		return fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	return conn.Close()
}

// plugin returns what containerd knows of its snapshotter micad.
func (f *containerdFlags) plugin(
	ctx context.Context, client *containerd.Client,
) (*introspectionapi.Plugin, error) {
	all, err := client.IntrospectionService().Plugins(ctx,
		"type=="+string(plugins.SnapshotPlugin))
	if err != nil {
		return nil, fmt.Errorf("ask containerd for its snapshotters: %w", err)
	}
	var names []string
	for _, p := range all.Plugins {
		if p.ID == f.snapshotter && p.InitErr != nil {
			return nil, fmt.Errorf("containerd could not load its snapshotter %s: %s: start micad, "+
				"then restart containerd", p.ID, p.InitErr.Message)
		}
		if p.ID == f.snapshotter {
			return p, nil
		}
		if p.InitErr == nil {
			names = append(names, p.ID)
		}
	}
	return nil, fmt.Errorf("containerd at %s has no snapshotter %s; it has %s. Name another with "+
		"--snapshotter, or let containerd know micad (mica doctor checks all of it).\n%s",
		f.address, f.snapshotter, strings.Join(names, ", "),
		doctor.PluginFix(cmp.Or(reach.SocketPath(f.micad), admin.DefaultAddress)))
}
