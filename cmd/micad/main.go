// Command micad is Mica's daemon: a containerd proxy plugin that serves image
// layers before they have arrived.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/mica-snapshotter/mica/fs/erofs"
)

// version is set by the linker.
var version = "dev"

func main() {
	if ran, err := erofs.RunChild(os.Args[1:], os.Stdin, os.Stdout); ran {
		exit(err)
	}
	if ran, err := keep(os.Args[1:]); ran {
		exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
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

// run runs the daemon until ctx ends.
func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil || o.done {
		return err
	}
	c, err := o.config()
	if err != nil {
		return err
	}
	tuneMemory()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	return serve(ctx, c, log)
}

// options is what the flags say.
type options struct {
	path, root, address, logLevel string
	given                         map[string]bool // the flags that are set
	done                          bool            // a flag asked for words only, which are printed
}

const usage = `Usage: micad [FLAG...]
       micad keep [FLAG...]     under a parent that keeps containers alive while micad is away (systemd does the same)

`

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("micad", flag.ContinueOnError)
	flags.StringVar(&o.path, "config", defaultConfig, "configuration file")
	flags.StringVar(&o.root, "root", "", "folder for all state (over the configuration's root)")
	flags.StringVar(&o.address, "address", "",
		"socket to listen at (over the configuration's address)")
	flags.StringVar(&o.logLevel, "log-level", "",
		"debug, info, warn or error (over the configuration's log_level)")
	showVersion := flags.Bool("version", false, "print the version and exit")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	o.given = map[string]bool{}
	err = flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return options{done: true}, nil
	case err != nil:
		return o, configError{err}
	case flags.NArg() > 0:
		return o,
			configError{fmt.Errorf("unexpected argument %q: micad takes flags only (see micad --help)",
				flags.Arg(0))}
	case *showVersion:
		fmt.Println("micad", version)
		o.done = true
	}
	flags.Visit(func(f *flag.Flag) { o.given[f.Name] = true })
	return o, nil
}

// config returns the configuration that the flags name and change. The error is a configError.
func (o options) config() (config, error) {
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
func (o options) changed() (config, error) {
	c, err := readConfig(o.path, o.given["config"])
	if err != nil {
		return c, err
	}
	if o.given["root"] {
		c.Root = o.root
	}
	if o.given["address"] {
		c.Address = o.address
	}
	if o.logLevel != "" {
		if err := c.LogLevel.UnmarshalText([]byte(o.logLevel)); err != nil {
			return c, fmt.Errorf("--log-level %q: use debug, info, warn or error", o.logLevel)
		}
	}
	return c, nil
}
