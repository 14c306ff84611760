// Command micad is Mica's daemon: a containerd proxy plugin that serves image
// layers before they have arrived.
package main

import (
	"context"
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

// exit ends the program, with an error if there is one.
func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "micad:", err)
	os.Exit(1)
}

// run reads flags and configuration and runs the daemon until ctx ends.
func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("micad", flag.ContinueOnError)
	path := flags.String("config", defaultConfig, "configuration file")
	root := flags.String("root", "", "folder for all state (over the configuration's root)")
	address := flags.String("address", "", "socket to listen at (over the configuration's address)")
	logLevel := flags.String("log-level", "", "debug, info, warn or error (over the configuration's log_level)")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: micad takes flags only (see micad --help)", flags.Arg(0))
	}
	if *showVersion {
		fmt.Println("micad", version)
		return nil
	}
	named := false
	flags.Visit(func(f *flag.Flag) { named = named || f.Name == "config" })
	c, err := readConfig(*path, named)
	if err != nil {
		return err
	}
	if *root != "" {
		c.Root = *root
	}
	if *address != "" {
		c.Address = *address
	}
	if *logLevel != "" {
		if err := c.LogLevel.UnmarshalText([]byte(*logLevel)); err != nil {
			return fmt.Errorf("--log-level %q: use debug, info, warn or error", *logLevel)
		}
	}
	tuneMemory()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	return serve(ctx, c, log)
}
