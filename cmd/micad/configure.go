package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
)

func configCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Check the configuration, or print the default", Args: noArgs,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	check := &cobra.Command{
		Use:   "check",
		Short: "Say whether micad would start with its configuration and these flags",
		Long: "Say whether micad would start with its configuration and these flags.\n\n" +
			"The exit status is 78 if not, as micad's own would be.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := o.config(); err != nil {
				return err
			}
			said := "is right"
			if _, err := os.Stat(o.path); err != nil {
				said = "does not exist: the defaults count"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "configuration %s %s\n", o.path, said)
			return err
		},
	}
	standard := &cobra.Command{
		Use:   "default",
		Short: "Print the default configuration",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return toml.NewEncoder(cmd.OutOrStdout()).Encode(defaults())
		},
	}
	cmd.AddCommand(check, standard)
	return cmd
}

// heedHangUps returns the SIGHUPs of this process, which would end it otherwise.
func heedHangUps() <-chan os.Signal {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	return hup
}

// reload reads the configuration again at each SIGHUP, until ctx ends. The level of the log is set
// at once. c is what the rest goes by until the next start, which containers do not notice.
func (o *options) reload(
	ctx context.Context, hup <-chan os.Signal, c config, level *slog.LevelVar, log *slog.Logger,
) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		next, err := o.config()
		if err != nil {
			log.Error("SIGHUP: the configuration stays as it was", "err", err)
			continue
		}
		level.Set(next.LogLevel.Level)
		log.Info("SIGHUP: the configuration is read", "log_level", next.LogLevel.Level,
			"after_restart", strings.Join(differing(c, next), ", "))
	}
}

// differing returns the keys, but for the level of the log, that two configurations differ in:
// sections as a whole.
func differing(a, b config) (keys []string) {
	a.LogLevel = b.LogLevel
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			keys = append(keys, x.Type().Field(i).Tag.Get("toml"))
		}
	}
	return keys
}
