package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/cache"
)

func psCommand() *cobra.Command {
	var address string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the layers that micad has mounted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ps(cmd.Context(), cmd.OutOrStdout(), reach.Daemon(address), asJSON)
		},
	}
	reach.AddAddress(cmd, &address)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// psOutput is what `mica ps --json` prints.
type psOutput struct {
	Layers    []fs.Status       `json:"layers"`
	Replays   []fs.ReplayStatus `json:"replays"`
	Fallbacks []admin.Fallback  `json:"fallbacks"`
	Cache     cache.Status      `json:"cache"`
}

func ps(ctx context.Context, w io.Writer, c *admin.Client, asJSON bool) error {
	var out psOutput
	if err := c.Get(ctx, admin.PathLayers, &out.Layers); err != nil {
		return err
	}
	if err := c.Get(ctx, admin.PathReplays, &out.Replays); err != nil {
		return err
	}
	if err := c.Get(ctx, admin.PathFallbacks, &out.Fallbacks); err != nil {
		return err
	}
	if err := c.Get(ctx, admin.PathCache, &out.Cache); err != nil {
		return err
	}
	if asJSON {
		return show.JSON(w, out)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LAYER\tMODE\tPRESENT\tTOTAL\tREQUESTS\tREFERENCE\tLAST ERROR")
	for _, l := range out.Layers {
		lastError := l.LastError
		if lastError != "" {
			lastError = fmt.Sprintf("%s (%s ago)", lastError,
				time.Since(l.LastErrorTime).Round(time.Second))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", show.Short(l.Layer.String()), l.Mode,
			show.Bytes(l.Present), show.Bytes(l.Total),
			l.Requests, l.Ref, lastError)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(out.Replays) > 0 {
		fmt.Fprintln(w, "\nProfiles that were fetched ahead of starts:")
	}
	for _, r := range out.Replays {
		fmt.Fprintf(w, "  %s, %s ago: %s; %d reads waited for something else\n",
			r.Ref, time.Since(r.Began).Round(time.Second), broughtText(r.Brought, r.Read), r.Missed)
	}
	fmt.Fprintf(w, "\n%s\n", cacheText(&out.Cache))
	if len(out.Fallbacks) > 0 {
		fmt.Fprintln(w, "\nNot lazy:")
	}
	for _, f := range out.Fallbacks {
		fmt.Fprintf(w, "  %s, %s ago: %s\n", f.Ref, time.Since(f.Time).Round(time.Second),
			f.Text())
	}
	return nil
}

// broughtText says of how much use it was what a profile has brought.
func broughtText(brought, read int64) string {
	if brought <= 0 {
		return "nothing had to be brought"
	}
	part := 100 * float64(read) / float64(brought)
	return fmt.Sprintf("%s brought, of which %.0f%% was read", show.Bytes(brought), part)
}
