// Command micad is Mica's daemon: a containerd proxy plugin that serves image
// layers before they have arrived.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/manual"
	"github.com/mica-snapshotter/mica/fs/erofs"
)

// version is set by the linker.
var version = "dev"

func main() {
	if ran, err := erofs.RunChild(os.Args[1:], os.Stdin, os.Stdout); ran {
		exit(err)
	}
	if ran, err := becomeKept(os.Args[1:]); ran {
		exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(&options{}).ExecuteContext(ctx); err != nil {
		stop()
		exit(err)
	}
}

// exitConfig is the exit status where what micad was told cannot be right: EX_CONFIG of sysexits.h.
// A start that follows cannot do better.
const exitConfig = 78

// configError is about flags or the configuration.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }

// exit ends the program, with an error if there is one.
func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "micad:", err)
	var wrong configError
	if errors.As(err, &wrong) {
		os.Exit(exitConfig)
	}
	os.Exit(1)
}

// command returns micad's command line. Its flags set o.
func command(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:           "micad",
		Short:         "Serve image layers to containerd before they have arrived",
		Version:       version,
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context())
		},
	}
	root.SetVersionTemplate("micad {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return configError{err} })
	flags := root.PersistentFlags()
	flags.SortFlags = false
	flags.StringVar(&o.path, "config", defaultConfig, "configuration file")
	flags.StringVar(&o.root, "root", "", "folder for all state (over the configuration's root)")
	flags.StringVar(&o.address, "address", "",
		"socket to listen at (over the configuration's address)")
	flags.StringVar(&o.logLevel, "log-level", "",
		"debug, info, warn or error (over the configuration's log_level)")
	o.given = flags.Changed
	root.AddCommand(keepCommand(o), configCommand(o))
	manual.AddTo(root)
	return root
}

// noArgs is cobra.NoArgs with an error that ends micad for good.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return configError{fmt.Errorf("unexpected argument %q: see %s --help", args[0],
			cmd.CommandPath())}
	}
	return nil
}

// options is what the flags say.
type options struct {
	path, root, address, logLevel string
	given                         func(flag string) bool // whether a flag is set
}

// run runs the daemon until ctx ends.
func (o *options) run(ctx context.Context) error {
	c, err := o.config()
	if err != nil {
		return err
	}
	tuneMemory()
	level := new(slog.LevelVar)
	level.Set(c.LogLevel.Level)
	text := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})
	spans, err := openTraces(ctx, slog.New(text))
	if err != nil {
		return configError{err}
	}
	defer spans.close(ctx)
	log := slog.New(spans.handler(text))
	hup := heedHangUps()
	reloading, stop := context.WithCancel(ctx)
	var reloader sync.WaitGroup
	reloader.Go(func() { o.reload(reloading, hup, c, level, log) })
	defer reloader.Wait()
	defer stop()
	return serve(ctx, c, spans, log)
}

// config returns the configuration that the flags name and change. The error is a configError.
func (o *options) config() (config, error) {
	c, err := o.changed()
	if err == nil {
		if err = c.cleanPaths(); err != nil {
			err = fmt.Errorf("configuration: %w", err)
		}
	}
	if err != nil {
		return c, configError{err}
	}
	return c, nil
}

// changed is config before its paths are looked at.
func (o *options) changed() (config, error) {
	c, err := readConfig(o.path, o.given("config"))
	if err != nil {
		return c, err
	}
	if o.given("root") {
		c.Root = o.root
	}
	if o.given("address") {
		c.Address = o.address
	}
	if o.logLevel != "" {
		if err := c.LogLevel.UnmarshalText([]byte(o.logLevel)); err != nil {
			return c, fmt.Errorf("--log-level %q: use debug, info, warn or error", o.logLevel)
		}
	}
	return c, nil
}
