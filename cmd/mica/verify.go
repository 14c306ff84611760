package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/cache"
)

func verifyCommand() *cobra.Command {
	var address string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [REF|LAYER]",
		Short: "Read all that is on disk and compare it with its digests",
		Long: "Read all that is on disk, of all layers, of an image's or of one, and compare it " +
			"with its digests. What is wrong is thrown " +
			"away and fetched again. The command fails where something is wrong that could not " +
			"be put right.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			which := ""
			if len(args) > 0 {
				which = args[0]
			}
			return verify(cmd.Context(), cmd.OutOrStdout(), reach.Daemon(address), which, asJSON)
		},
	}
	reach.AddAddress(cmd, &address)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a line of JSON for each layer")
	return cmd
}

func verify(ctx context.Context, w io.Writer, c *admin.Client, which string, asJSON bool) error {
	var all []cache.Usage
	if err := c.Get(ctx, admin.PathUsage, &all); err != nil {
		return err
	}
	layers := matching(all, which)
	if len(layers) == 0 && which != "" {
		return fmt.Errorf("no layer of %s is on this node: `mica du` lists what is", which)
	}
	var left int
	for _, d := range layers {
		got, err := c.Verify(ctx, d)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has gone meanwhile
		}
		if err != nil {
			return err
		}
		if got.Error != "" {
			left++
		}
		if asJSON {
			err = json.NewEncoder(w).Encode(got)
		} else {
			_, err = fmt.Fprintln(w, verifiedText(&got))
		}
		if err != nil {
			return err
		}
	}
	if left > 0 {
		return fmt.Errorf("%d of %d layers are wrong on disk and could not be put right", left,
			len(layers))
	}
	return nil
}

// matching returns the layers that which names: an image, a layer's digest or the beginning of one,
// or "", for all.
func matching(all []cache.Usage, which string) (layers []digest.Digest) {
	for _, u := range all {
		d := u.Layer.String()
		if which == "" || slices.Contains(u.Refs, which) || len(which) >= 4 &&
			(strings.HasPrefix(d, which) || strings.HasPrefix(u.Layer.Encoded(), which)) {
			layers = append(layers, u.Layer)
		}
	}
	return layers
}

func verifiedText(v *cache.Verified) string {
	text := fmt.Sprintf("%s  %s in %d spans", show.Short(v.Layer.String()), show.Bytes(v.Bytes),
		v.Spans)
	switch {
	case v.Error != "":
		text += fmt.Sprintf(": %d wrong, %d put right; %s", v.Wrong, v.Repaired, v.Error)
	case v.Wrong > 0:
		text += fmt.Sprintf(": %d wrong, put right", v.Wrong)
	default:
		text += ": as it should be"
	}
	if v.Ref != "" {
		text += "  " + v.Ref
	}
	return text
}
