package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/doctor"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
)

const (
	supportTimeout = 20 * time.Second // for each part
	supportMost    = 8 << 20          // bytes of each part
)

func supportCommand() *cobra.Command {
	var o doctor.Options
	var file string
	cmd := &cobra.Command{
		Use:   "support",
		Short: "Gather what a bug report needs into a tarball, without secrets",
		Long: "Gather what a bug report needs into a tarball: what micad says of itself, its log, its " +
			"goroutines,\nwhat mica doctor finds, kernel and mounts. Passwords, tokens and keys are " +
			"not read; what looks like one\nin a log is replaced. It names images, registries and " +
			"containers: look through it before you publish it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Address = reach.SocketPath(o.Address)
			o.Micad = reach.Daemon(o.Address)
			if file == "" {
				file = "mica-support-" + time.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
			}
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			if err := errors.Join(support(cmd.Context(), f, o), f.Close()); err != nil {
				return errors.Join(err, os.Remove(file))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: look through it, then attach it\n", file)
			return err
		},
	}
	reach.AddAddress(cmd, &o.Address)
	cmd.Flags().StringVar(&o.Config, "containerd-config", "/etc/containerd/config.toml",
		"containerd's configuration file")
	cmd.Flags().StringVar(&o.Scratch, "scratch", "/var/lib/micad",
		"folder to try mounts in, on the filesystem that micad's root is on")
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write; empty: a new one here")
	return cmd
}

// part is a file of the tarball. What it lacks it says in place of its content.
type part struct {
	name string
	read func(ctx context.Context) ([]byte, error)
}

func supportParts(o doctor.Options) []part {
	asked := func(path string) func(context.Context) ([]byte, error) {
		return func(ctx context.Context) ([]byte, error) { return o.Micad.Text(ctx, path) }
	}
	ran := func(name string, args ...string) func(context.Context) ([]byte, error) {
		return func(ctx context.Context) ([]byte, error) {
			return exec.CommandContext(ctx, name, args...).CombinedOutput()
		}
	}
	file := func(path string) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) { return os.ReadFile(path) }
	}
	return []part{
		{"mica.txt", func(context.Context) ([]byte, error) { return []byte(version + "\n"), nil }},
		{"doctor.json", func(ctx context.Context) ([]byte, error) {
			var b bytes.Buffer
			err := doctor.Check(ctx, o).Print(&b, true)
			if b.Len() > 0 {
				err = nil // what is wrong is in it
			}
			return b.Bytes(), err
		}},
		{"info.json", asked(admin.PathInfo)},
		{"layers.json", asked(admin.PathLayers)},
		{"replays.json", asked(admin.PathReplays)},
		{"starts.json", asked(admin.PathStarts)},
		{"fallbacks.json", asked(admin.PathFallbacks)},
		{"cache.json", asked(admin.PathCache)},
		{"usage.json", asked(admin.PathUsage)},
		{"metrics.txt", asked(admin.PathMetrics)},
		{"goroutines.txt", asked(admin.PathGoroutines)},
		{"micad.log", ran("journalctl", "--unit=micad", "--lines=20000", "--no-pager",
			"--output=short-iso-precise")},
		{"unit.txt", ran("systemctl", "show", "micad.service")},
		{"containerd.txt", ran("containerd", "--version")},
		{"kernel.txt", file("/proc/version")},
		{"mounts.txt", file("/proc/self/mountinfo")},
		{"memory.txt", file("/proc/meminfo")},
		{"pressure.txt", file("/proc/pressure/io")},
		{"os-release.txt", file("/etc/os-release")},
	}
}

// support writes the tarball.
func support(ctx context.Context, w io.Writer, o doctor.Options) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	now := time.Now()
	for _, p := range supportParts(o) {
		b, err := readPart(ctx, p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b = fmt.Appendf(b, "\nnot here: %v\n", err)
		}
		h := &tar.Header{Name: "mica-support/" + p.name, Mode: 0o600, Size: int64(len(b)),
			ModTime: now}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(b); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

func readPart(ctx context.Context, p part) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, supportTimeout)
	defer cancel()
	b, err := p.read(ctx)
	if over := len(b) - supportMost; over > 0 {
		b = b[over:] // the latest
	}
	return redact(b), err
}

// secrets match credentials in URLs and headers, and values of keys that are named like one.
var secrets = []*regexp.Regexp{
	regexp.MustCompile(`(://[^/\s:@"]*:)[^/\s@"]+(@)`),
	regexp.MustCompile(`(?i)((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}()`),
	regexp.MustCompile(
		`(?i)((?:password|passwd|secret|token|auth|signature|credential)"?\s*[=:]\s*"?)[^\s"&,}]{4,}()`),
}

// redact replaces what looks like a secret.
func redact(b []byte) []byte {
	for _, s := range secrets {
		b = s.ReplaceAll(b, []byte("${1}REDACTED${2}"))
	}
	return b
}
