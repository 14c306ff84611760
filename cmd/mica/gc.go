package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
)

func gcCommand() *cobra.Command {
	var address string
	var unused, asJSON bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Free the disk of layers that nothing refers to",
		Long: "Free the disk of layers that containerd no longer refers to, and of what " +
			"interrupted pulls have left. " +
			"With --unused the content of images that no container uses goes too: micad still " +
			"serves them, and fetches again what is read.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return gc(cmd.Context(), cmd.OutOrStdout(), reach.Daemon(address), unused, asJSON)
		},
	}
	reach.AddAddress(cmd, &address)
	cmd.Flags().BoolVar(&unused, "unused", false,
		"give up the content of images that no container uses")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func gc(ctx context.Context, w io.Writer, c *admin.Client, unused, asJSON bool) error {
	out, err := c.Collect(ctx, unused)
	if err != nil {
		return err
	}
	if asJSON {
		return show.JSON(w, out)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range out.Freed {
		what := "content"
		if f.Removed {
			what = "removed"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", show.Short(f.Layer.String()), what,
			show.Bytes(f.Bytes), f.Ref)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "%s freed\n", show.Bytes(out.Bytes))
	return nil
}
