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

	"github.com/mica-snapshotter/mica/fs/keeper/supervisor"
)

// keepExec is the first argument of the process that becomes micad.
const keepExec = "keep-exec"

// self is the program that runs, whatever has become of its file.
const self = "/proc/self/exe"

// keep is `micad keep [flags of micad]`: micad under a supervisor, where no systemd keeps its
// descriptors. SIGTERM and SIGINT end both, SIGHUP starts micad anew from its file, which may be
// another version.
//
// micad's process begins as a second one of this very program (keep-exec), which cannot be missing,
// and executes the file then.
func keep(args []string) (bool, error) {
	switch {
	case len(args) > 1 && args[0] == keepExec:
		surviveBrokenLog()
		return true, supervisor.ExecListening([]string{args[1], self}, args[1:])
	case len(args) > 0 && args[0] == "keep":
	default:
		return false, nil
	}
	// What cannot be right would be started again and again.
	o, err := parse(args[1:])
	if err != nil || o.done {
		return true, err
	}
	if _, err := o.config(); err != nil {
		return true, err
	}
	surviveBrokenLog()
	path, err := ownPath()
	if err != nil {
		return true, err
	}
	debug.SetGCPercent(20) // it allocates next to nothing, and should stay small
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	restart := make(chan os.Signal, 1)
	signal.Notify(restart, syscall.SIGHUP)
	defer signal.Stop(restart)
	err = supervisor.Run(ctx, supervisor.Options{
		Path:  self,
		Wrong: exitConfig,
		Args:  append([]string{os.Args[0], keepExec, path}, args[1:]...),
		Env:   os.Environ(),
		Log:   slog.New(slog.NewTextHandler(os.Stderr, nil)).With("part", "keep"),
	}, restart)
	if errors.Is(err, supervisor.ErrWrong) {
		err = configError{err}
	}
	return true, err
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
