package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/rootfs"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// mountPoll is how often mica mount looks whether somebody else has unmounted.
const mountPoll = 500 * time.Millisecond

// imageMount is one run of `mica mount`.
type imageMount struct {
	registry reach.Registry
	mode     string
	root     string
	out      io.Writer
}

func mountCommand() *cobra.Command {
	m := &imageMount{}
	cmd := &cobra.Command{
		Use:   "mount [flags] REF DIR",
		Short: "Mount an image's root filesystem, lazily and read-only",
		Long: `Mounts the root filesystem of an image at DIR, without containerd: what is read
comes from the registry at that moment, where the image has an index. Serves
until it is interrupted or DIR is unmounted.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m.out = cmd.OutOrStdout()
			return m.run(cmd.Context(), args[0], args[1])
		},
	}
	m.registry.AddImage(cmd)
	cmd.Flags().StringVar(&m.mode, "mode", string(fs.Auto),
		"auto, erofs, fuse or local (downloads first)")
	cmd.Flags().StringVar(&m.root, "root", "",
		"folder to keep layers in for the next time (default: a temporary one)")
	return cmd
}

func (m *imageMount) run(ctx context.Context, name, dir string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("mounting needs root: run it with sudo")
	}
	mode, err := fs.ParseMode(m.mode)
	if err != nil {
		return show.WithCode(show.Usage, err)
	}
	if dir, err = mountPoint(dir); err != nil {
		return err
	}
	root, err := m.folder()
	if err != nil {
		return err
	}
	if m.root == "" {
		defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	}
	client, err := m.registry.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	table, err := fs.Open(ctx, fs.Options{
		Root: root, Remote: client, Mode: mode,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	im, err := rootfs.Open(ctx, client, name, m.registry.Platform)
	if err != nil {
		return err
	}
	return m.serve(ctx, table, im.Layers, root, dir)
}

// mountPoint checks that dir can be mounted on and returns its absolute path.
func mountPoint(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("mount point: %w: make the folder first", err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("mount point %s is no folder", dir)
	}
	return dir, nil
}

// folder is where layers are kept.
func (m *imageMount) folder() (string, error) {
	if m.root == "" {
		return os.MkdirTemp("", "mica-mount-")
	}
	if err := os.MkdirAll(m.root, 0o700); err != nil {
		return "", err
	}
	return filepath.Abs(m.root)
}

// serve mounts the layers and an overlay of them, and waits for the end.
func (m *imageMount) serve(
	ctx context.Context, table *fs.Table, layers []fs.Layer, root, dir string,
) (err error) {
	empty := filepath.Join(root, "empty")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return err
	}
	below, unmount, err := rootfs.Mount(ctx, table, layers)
	defer func() { err = errors.Join(err, unmount()) }()
	if err != nil {
		return err
	}
	if err := (rootfs.Overlay{Lower: below, Empty: empty}).Mount(dir); err != nil {
		return err
	}
	defer func() {
		if e := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil &&
			!errors.Is(e, unix.EINVAL) {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", dir, e))
		}
	}()
	fmt.Fprintf(m.out, "%s: mounted at %s\n", layers[0].Ref, dir)
	return waitUnmounted(ctx, dir)
}

// waitUnmounted returns when ctx ends or nothing is mounted at dir any more.
func waitUnmounted(ctx context.Context, dir string) error {
	tick := time.NewTicker(mountPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		mount, ok, err := mountinfo.Top(dir)
		if err != nil {
			return err
		}
		if !ok || mount.Type != "overlay" {
			return nil
		}
	}
}
