// Command demo starts the same program three times from the same image behind a
// simulated network: by containerd's overlayfs snapshotter, which downloads the
// whole image first, by Mica, which does not, and by Mica with the profile that
// its first start has left. It makes everything from nothing, prints a table and
// the last start's requests, and fails if programs print different things.
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
		for _, way := range ways {
			say("starting a container by %s", way)
			r, err := m.measure(ctx, way)
			if err != nil {
				return fmt.Errorf("%s: %w", way, err)
			}
			results = append(results, r)
		}
	}
	fmt.Printf("\nround trip %v, %.0f Mbit/s, image %.1f MB\n\n",
		network.RTT, network.Rate*8/1e6, megabytes(size))
	if err := table(results); err != nil {
		return err
	}
	last := results[len(results)-1]
	fmt.Printf("\nThe last start: . waits for the registry, # receives\n\n%s",
		waterfall(last, fallWidth))
	fmt.Printf("\nWhen the program was ready micad went on with what had not been read: %.1f s later "+
		"the whole image was\nhere, checked against its digests, and served by the kernel alone.\n",
		last.local.Seconds())
	for _, r := range results {
		if r.output != results[0].output {
			return fmt.Errorf("%s's container printed\n%s\n%s's\n%s", r.way, r.output,
				results[0].way, results[0].output)
		}
	}
	fmt.Print("\nAll containers printed the same.\n")
	return nil
}

func table(results []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tpull\tstart\tready\ttotal\tdownloaded\trequests\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%.2f s\t%.2f s\t%.2f s\t%.2f s\t%.1f MB\t%d\t\n", r.way,
			r.pull.Seconds(), r.start.Seconds(), r.ready.Seconds(), r.total().Seconds(),
			megabytes(r.down), len(r.requests))
	}
	return w.Flush()
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }
