// Command demo starts the same program twice from the same image behind a
// simulated network: by containerd's overlayfs snapshotter, which downloads the
// whole image first, and by Mica, which does not. It makes everything from
// nothing, prints a table, and fails if the two print different things.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

func main() {
	rtt := flag.Duration("rtt", shaper.Cloud.RTT, "round trip time of the network")
	rate := flag.Float64("rate", shaper.Cloud.Rate, "bandwidth of the network, bytes per second")
	runs := flag.Int("runs", 1, "how often each snapshotter is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx, shaper.Profile{RTT: *rtt, Rate: *rate}, *runs)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func demo(ctx context.Context, network shaper.Profile, runs int) (err error) {
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	say("making a Debian image with Python (the first time, this takes a minute or two)")
	img, err := images.Debian(ctx)
	if err != nil {
		return err
	}
	size, err := images.Size(img)
	if err != nil {
		return err
	}
	reg, err := registry.Distribution(ctx, filepath.Join(dir, "registry"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	say("pushing it to a local registry: %d layers, %.1f MB", images.Layers, megabytes(size))
	if err := images.Push(ctx, reg.Direct()+"/demo:latest", img); err != nil {
		return err
	}
	start := time.Now()
	if _, err := node.Command(ctx, "mica", "index", "create", "--push", reg.Direct()+"/demo:latest"); err != nil {
		return err
	}
	say("indexed it in %.1f s", time.Since(start).Seconds())

	m := &measurement{registry: reg, ref: reg.Host() + "/demo:latest", network: network}
	var results []result
	for range runs {
		for _, snapshotter := range []string{"overlayfs", node.Snapshotter} {
			say("starting a container by %s", snapshotter)
			r, err := m.measure(ctx, snapshotter)
			if err != nil {
				return fmt.Errorf("%s: %w", snapshotter, err)
			}
			results = append(results, r)
		}
	}
	fmt.Printf("\nround trip %v, %.0f Mbit/s, image %.1f MB\n\n", network.RTT, network.Rate*8/1e6, megabytes(size))
	if err := table(results); err != nil {
		return err
	}
	for _, r := range results {
		if r.output != results[0].output {
			return fmt.Errorf("%s's container printed\n%s\n%s's\n%s", r.snapshotter, r.output, results[0].snapshotter, results[0].output)
		}
	}
	fmt.Print("\nall containers printed the same\n")
	return nil
}

func table(results []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "snapshotter\tpull\tstart\tready\ttotal\tdownloaded\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%.2f s\t%.2f s\t%.2f s\t%.2f s\t%.1f MB\t\n", r.snapshotter,
			r.pull.Seconds(), r.start.Seconds(), r.ready.Seconds(), (r.pull + r.start + r.ready).Seconds(), megabytes(r.down))
	}
	return w.Flush()
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }
