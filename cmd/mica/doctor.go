package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/doctor"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
)

func doctorCommand() *cobra.Command {
	var o doctor.Options
	var asJSON, forget bool
	cmd := &cobra.Command{
		Use:   "doctor [REF]",
		Short: "Check containerd's configuration, the kernel and micad; and an image",
		Long: "Check containerd's configuration, the kernel and micad. Of an image, say whether it " +
			"would be lazy\non this node and why not: micad asks its registry, as for a pull, and " +
			"keeps nothing. The exit\ncode is 1 where something is wrong, or the image is not " +
			"lazy.\n\n" +
			"What Mica does not do, and what helps, is told at\n" + doctor.LimitsPage + ":\n" +
			"export, save, convert and pushes to another registry, for instance, need a lazy " +
			"image's blobs\n" +
			"in containerd's content store (mica fetch).",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.Address = reach.SocketPath(o.Address)
			o.Micad = reach.Daemon(o.Address)
			if forget {
				f, err := doctor.Forget(cmd.Context(), o)
				return errors.Join(f.Print(cmd.OutOrStdout(), asJSON), err)
			}
			if len(args) > 0 {
				if o.Image, err = reach.Normalise(args[0]); err != nil {
					return err
				}
			}
			return doctor.Check(cmd.Context(), o).Print(cmd.OutOrStdout(), asJSON)
		},
	}
	reach.AddAddress(cmd, &o.Address)
	cmd.Flags().StringVar(&o.Config, "containerd-config", "/etc/containerd/config.toml",
		"containerd's configuration file")
	cmd.Flags().StringVar(&o.Scratch, "scratch", "/var/lib/micad",
		"folder to try mounts in, on the filesystem that micad's root is on")
	cmd.Flags().BoolVar(&forget, "forget", false,
		"have containerd forget what micad's lost root held; does nothing else")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
