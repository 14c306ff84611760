package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/node"
	"github.com/mica-snapshotter/mica/cmd/mica/setup"
)

// nodeCommand is what the pods of the Helm chart run.
func nodeCommand() *cobra.Command {
	var o node.Options
	cmd := &cobra.Command{
		Use:    "node",
		Short:  "Install Mica on a node of Kubernetes, for the Helm chart's pods",
		Hidden: true,
		Args:   cobra.NoArgs,
	}
	cmd.PersistentFlags().StringVar(&o.Bin, "bin", "/usr/local/bin", "the host's folder for programs")
	cmd.PersistentFlags().BoolVar(&o.Restart, "restart", true,
		"restart the service with containerd where that is needed")
	do := func(name, short string, run func(context.Context, node.Options) error) {
		cmd.AddCommand(&cobra.Command{
			Use: name + " " + strings.Join(setup.Targets, "|"), Short: short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := node.Enter(); err != nil {
					return err
				}
				o.Target, o.Micad, o.Out = args[0], "/etc/micad/config.toml", cmd.OutOrStdout()
				return run(cmd.Context(), o)
			},
		})
	}
	do("install", "Make the host's Mica that of the pod's image", node.Install)
	do("remove", "Take Mica away from the host", node.Remove)
	cmd.AddCommand(&cobra.Command{
		Use: "wait", Short: "Wait for the end of the pod", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { <-cmd.Context().Done() },
	})
	return cmd
}
