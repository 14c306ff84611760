package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/cmd/mica/setup"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
)

func setupCommand() *cobra.Command {
	var o setup.Options
	var undo, yes bool
	cmd := &cobra.Command{
		Use:   "setup " + strings.Join(setup.Targets, "|"),
		Short: "Change this machine's configuration so that images are pulled by Mica",
		Long: "Change the configuration of containerd, and of who uses it, so that images are " +
			"pulled by Mica.\nWhat changes is shown first. Nothing is restarted.",
		Args:      cobra.ExactArgs(1),
		ValidArgs: setup.Targets,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Target, o.Out = args[0], cmd.OutOrStdout()
			o.Confirm = func() error { return confirm(cmd, yes) }
			do := setup.Run
			if undo {
				do = setup.Undo
			}
			err := do(cmd.Context(), o)
			if errors.Is(err, setup.ErrTarget) {
				err = show.WithCode(show.Usage, err)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "show what would change, and change nothing")
	cmd.Flags().BoolVar(&undo, "undo", false, "put back what mica setup has changed")
	cmd.Flags().BoolVar(&o.BuildKit, "buildkit", false, "have containerd know the plugin for "+
		"BuildKit too, by which a FROM is lazy; of docker: have it use that plugin for all")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVar(&o.Config, "containerd-config", "",
		"containerd's configuration file (default: where the target has it)")
	cmd.Flags().StringVar(&o.Micad, "micad-config", "/etc/micad/config.toml",
		"micad's configuration file")
	cmd.Flags().StringVar(&o.Address, "address", os.Getenv("MICA_ADDRESS"),
		"micad's socket ($MICA_ADDRESS); empty: the one in its configuration")
	return cmd
}

// confirm asks on a terminal whether to go on.
func confirm(cmd *cobra.Command, yes bool) error {
	if yes {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err != nil {
		return errors.New("nothing changed: there is no terminal to ask on; add --yes")
	}
	fmt.Fprint(cmd.ErrOrStderr(), "Write this? [y/N] ")
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	if !strings.HasPrefix(strings.ToLower(answer), "y") {
		return errors.New("nothing changed")
	}
	return nil
}
