package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/cache"
)

func duCommand() *cobra.Command {
	var address string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "du",
		Short: "Show what images take on this node's disk",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return du(cmd.Context(), cmd.OutOrStdout(), reach.Daemon(address), asJSON)
		},
	}
	reach.AddAddress(cmd, &address)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// duOutput is what `mica du --json` prints.
type duOutput struct {
	Cache  cache.Status  `json:"cache"`
	Layers []cache.Usage `json:"layers"`
}

func du(ctx context.Context, w io.Writer, c *admin.Client, asJSON bool) error {
	var out duOutput
	if err := c.Get(ctx, admin.PathCache, &out.Cache); err != nil {
		return err
	}
	if err := c.Get(ctx, admin.PathUsage, &out.Layers); err != nil {
		return err
	}
	if asJSON {
		return show.JSON(w, out)
	}
	return printUsage(w, &out)
}

func printUsage(w io.Writer, out *duOutput) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tLAYER\tSTATE\tIN USE\tLAYER SIZE\tUNPACKED\tPRESENT\tON DISK")
	for _, image := range byImage(out.Layers) {
		var sum cache.Usage
		used := false
		for _, u := range image.layers {
			sum.Size += u.Size
			sum.Unpacked += u.Unpacked
			sum.Present += u.Present
			sum.Disk += u.Disk
			used = used || u.InUse
		}
		fmt.Fprintf(t, "%s\t%d layers\t\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(image.ref, "(of no image)"),
			len(image.layers), yesNo(used),
			show.Bytes(sum.Size), show.Bytes(sum.Unpacked), show.Bytes(sum.Present),
			show.Bytes(sum.Disk))
		for _, u := range image.layers {
			fmt.Fprintf(t, "\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", show.Short(u.Layer.String()), u.State,
				yesNo(u.InUse),
				show.Bytes(u.Size), show.Bytes(u.Unpacked), show.Bytes(u.Present),
				show.Bytes(u.Disk))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s\n", cacheText(&out.Cache))
	return nil
}

// imageUsage is the layers that an image brought, some of which others may have too.
type imageUsage struct {
	ref    string
	layers []cache.Usage
}

// byImage groups layers by the images that brought them; one that several brought is listed under
// each.
func byImage(layers []cache.Usage) []imageUsage {
	var all []imageUsage
	add := func(ref string, u cache.Usage) {
		i := slices.IndexFunc(all, func(x imageUsage) bool { return x.ref == ref })
		if i < 0 {
			i = len(all)
			all = append(all, imageUsage{ref: ref})
		}
		all[i].layers = append(all[i].layers, u)
	}
	for _, u := range layers {
		for _, ref := range u.Refs {
			add(ref, u)
		}
		if len(u.Refs) == 0 {
			add("", u)
		}
	}
	slices.SortFunc(all, func(a, b imageUsage) int { return cmp.Compare(a.ref, b.ref) })
	return all
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// cacheText describes the cache in a line.
func cacheText(c *cache.Status) string {
	text := show.Bytes(c.Used) + " on disk"
	if c.Quota > 0 {
		text += " of " + show.Bytes(c.Quota)
	}
	if c.Evicted > 0 {
		text += ", " + show.Bytes(c.Evicted) + " evicted since micad's start"
	}
	if c.Corrupt > 0 {
		text += fmt.Sprintf(", %d spans were wrong", c.Corrupt)
	}
	switch {
	case c.Fault != "":
		text += "; nothing is fetched in the background: " + c.Fault
	case c.Full:
		text += "; nothing is fetched in the background: the quota is reached"
	}
	return text
}
