package publish

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// maxImport bounds a file that is imported, bytes: JSON takes some twenty times what the binary
// format takes.
const maxImport = 64 << 20

func profileListCommand() *cobra.Command {
	var f profileFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the profiles of this node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := f.store().list(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), list)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "MANIFEST\tRUNS\tLAYERS\tRANGES\tBYTES\tSAVED")
			for _, p := range list {
				saved := time.Since(p.Saved).Round(time.Second)
				if p.Error != "" {
					fmt.Fprintf(t, "%s\t-\t-\t-\t-\t%s ago: %s\n", p.Manifest, saved, p.Error)
					continue
				}
				fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%s ago\n", p.Manifest, p.Runs, p.Layers,
					p.Ranges, show.Bytes(p.Bytes), saved)
			}
			return t.Flush()
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func profileShowCommand() *cobra.Command {
	var f profileFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [flags] REF|DIGEST|FILE",
		Short: "Show what starts of an image read, in order",
		Long: `Shows the profile of an image: named as in docker pull, by the digest of its
manifest, or in a file that mica profile export or record wrote.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var p *profile.Profile
			st, err := os.Stat(args[0])
			if err == nil && st.Mode().IsRegular() {
				p, err = readProfile(args[0])
			} else {
				p, err = f.load(cmd.Context(), args[0])
			}
			if err != nil {
				return err
			}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), p)
			}
			return showProfile(cmd.OutOrStdout(), p)
		},
	}
	f.add(cmd)
	f.registry.AddImage(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as export does")
	return cmd
}

func showProfile(w io.Writer, p *profile.Profile) error {
	fmt.Fprintf(w, "manifest %s: %d ranges of %d layers, %s, from %d runs\n\n", p.Manifest,
		len(p.Ranges), p.Layers(), show.Bytes(p.Bytes()), p.Runs)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "AT\tRUNS\tOFFSET\tSIZE\t  LAYER\t")
	for _, r := range p.Ranges {
		fmt.Fprintf(t, "%.3fs\t%d\t%d\t%d\t  %s\t\n", r.At.Seconds(), r.Runs, r.Off, r.Size,
			show.Short(r.Layer.String()))
	}
	return t.Flush()
}

func profileExportCommand() *cobra.Command {
	var f profileFlags
	var output string
	cmd := &cobra.Command{
		Use:   "export [flags] REF|DIGEST",
		Short: "Write a profile of this node as JSON, or to a file",
		Long: `Writes the profile of an image, named as in docker pull or by the digest of its
manifest: as JSON to standard output, or with -o to a file, as JSON if its
name ends so and in the binary format otherwise.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := f.load(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if output == "" {
				return show.JSON(cmd.OutOrStdout(), p)
			}
			return writeProfile(output, p)
		},
	}
	f.add(cmd)
	f.registry.AddImage(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write to")
	return cmd
}

func profileImportCommand() *cobra.Command {
	var f profileFlags
	var replace bool
	cmd := &cobra.Command{
		Use:   "import [flags] FILE|-",
		Short: "Give this node a profile",
		Long: `Reads a profile that export or record wrote, from a file or standard input, and
merges it with what this node has of the same image.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readProfile(args[0])
			if err != nil {
				return err
			}
			return f.store().save(cmd.Context(), p, replace)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&replace, "replace", false, "forget what the node has, instead of merging")
	return cmd
}

func profileRemoveCommand() *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:   "rm [flags] REF|DIGEST...",
		Short: "Remove profiles of this node",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				errs = append(errs, f.removeOne(cmd, name))
			}
			return errors.Join(errs...)
		},
	}
	f.add(cmd)
	f.registry.AddImage(cmd)
	return cmd
}

func (f *profileFlags) removeOne(cmd *cobra.Command, name string) error {
	m, err := f.manifest(cmd.Context(), name)
	if err != nil {
		return err
	}
	err = f.store().remove(cmd.Context(), m)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("this node has no profile of %s: mica profile ls lists what it has", name)
	}
	return err
}

// readProfile reads a profile, binary or JSON, from a file or, for "-", from standard input.
func readProfile(path string) (*profile.Profile, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, maxImport+1))
	if err == nil && len(b) > maxImport {
		err = fmt.Errorf("it has more than %d bytes", maxImport)
	}
	if err != nil {
		return nil, fmt.Errorf("read profile %s: %w", path, err)
	}
	p, err := profile.Import(b, profile.Limits{})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return p, nil
}

// writeProfile writes a profile and replaces path when it is whole: as JSON if its name ends so.
func writeProfile(path string, p *profile.Profile) error {
	b, err := p.Encode()
	if err == nil && filepath.Ext(path) == ".json" {
		b, err = json.MarshalIndent(p, "", "  ")
	}
	if err != nil {
		return err
	}
	return atomicfile.ReplaceBytes(path, 0o644, b)
}
