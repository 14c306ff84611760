// Command mica makes and inspects indexes, mounts images, and tells what micad
// does. Each verb has a file of its own, here or in a package below.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/manual"
	"github.com/mica-snapshotter/mica/cmd/mica/publish"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/erofs"
)

// version is set by the linker.
var version = "dev"

func main() {
	if ran, err := erofs.RunChild(os.Args[1:], os.Stdin, os.Stdout); ran {
		exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := execute(ctx, rootCommand())
	stop()
	exit(err)
}

// execute runs the command that the command line names, which is wrong where the command has not
// begun.
func execute(ctx context.Context, root *cobra.Command) error {
	begun, out := false, &output{w: root.OutOrStdout()}
	root.SetOut(out)
	root.PersistentPreRun = func(*cobra.Command, []string) { begun = true }
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !begun {
		return show.WithCode(show.Usage, fmt.Errorf("%w (%s --help)", err, cmd.CommandPath()))
	}
	if err == nil {
		err = out.err
	}
	return err
}

// output is where commands write what they are asked for. It keeps an error, for those that do not
// look at it.
type output struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		o.err = err
	}
	return n, err
}

// exit ends the program, with an error if there is one.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "mica:", err)
	}
	os.Exit(show.Code(err))
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "mica",
		Short:         "Start containers before their image has arrived",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(pullCommand(), fetchCommand(), imagesCommand(), publish.IndexCommand(),
		mountCommand(), publish.ProfileCommand(), psCommand(), duCommand(), gcCommand(),
		verifyCommand(), doctorCommand(), setupCommand(), nodeCommand(), supportCommand(),
		uiCommand())
	manual.AddTo(root)
	return root
}
