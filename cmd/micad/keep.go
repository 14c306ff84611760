package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mica-snapshotter/mica/fs/keeper/supervisor"
)

// keepExec is the first argument of the process that becomes micad.
const keepExec = "keep-exec"

// self is the program that runs, whatever has become of its file.
const self = "/proc/self/exe"

// becomeKept makes a process micad that micad keep has started: it begins as a second one of this
// very program, which cannot be missing, and executes the file then. false: args are others.
func becomeKept(args []string) (bool, error) {
	if len(args) < 2 || args[0] != keepExec {
		return false, nil
	}
	surviveBrokenLog()
	return true, supervisor.ExecListening([]string{args[1], self}, args[1:])
}

func keepCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "keep",
		Short: "Run micad, and keep containers alive while it is away, where no systemd does",
		Long: "Run micad under a parent that keeps the descriptors of its mounts, where no systemd " +
			"does.\n\nSIGTERM and SIGINT end both; SIGHUP starts micad anew from its file, which may " +
			"be another version.",
		Version: version,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// What cannot be right would be started again and again.
			if _, err := o.config(); err != nil {
				return err
			}
			var flags []string
			cmd.Flags().Visit(func(f *pflag.Flag) {
				flags = append(flags, "--"+f.Name+"="+f.Value.String())
			})
			return keep(cmd.Context(), flags)
		},
	}
}

// keep runs micad with flags under a supervisor until ctx ends.
func keep(ctx context.Context, flags []string) error {
	surviveBrokenLog()
	path, err := ownPath()
	if err != nil {
		return err
	}
	debug.SetGCPercent(20) // it allocates next to nothing, and should stay small
	restart := make(chan os.Signal, 1)
	signal.Notify(restart, syscall.SIGHUP)
	defer signal.Stop(restart)
	err = supervisor.Run(ctx, supervisor.Options{
		Path:  self,
		Wrong: exitConfig,
		Args:  append([]string{os.Args[0], keepExec, path}, flags...),
		Env:   os.Environ(),
		Log:   slog.New(slog.NewTextHandler(os.Stderr, nil)).With("part", "keep"),
	}, restart)
	if errors.Is(err, supervisor.ErrWrong) {
		err = configError{err}
	}
	return err
}

// surviveBrokenLog makes writing to a standard error that nobody reads any more an error: by
// default it is the end of a Go program.
func surviveBrokenLog() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// ownPath is where the next version of this program will be: as it was called if that is it (a
// symbolic link may lead elsewhere then), else its file.
func ownPath() (string, error) {
	if called, err := exec.LookPath(os.Args[0]); err == nil && isSelf(called) {
		return filepath.Abs(called)
	}
	return os.Executable()
}

// isSelf tells whether the file is the program that runs.
func isSelf(path string) bool {
	a, err := os.Stat(path)
	if err != nil {
		return false
	}
	b, err := os.Stat(self)
	return err == nil && os.SameFile(a, b)
}
