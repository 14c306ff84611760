// Command bench measures how long containers take from nothing until their
// program is ready: with containerd's overlayfs and EROFS snapshotters and with
// Mica, from real images, through simulated networks. docs/bench.md says what is
// measured and what the files hold that it writes.
//
//	images ──▶ registry (indexes, profiles) ──▶ for each run, network, workload, snapshotter:
//	           a fresh node, cold caches ──▶ start ──▶ medians ──▶ table, bench.json, bench.svg
//
// One thing is measured at a time. It needs root, and the binaries of make build tools.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/integration/node"
)

// flags of the command line.
type flags struct {
	workloads, networks, ways string
	runs                      int
	quick, files              bool
	out                       string
	limit                     time.Duration
	options
}

func main() {
	var f flags
	flag.StringVar(&f.workloads, "workloads", "",
		"comma-separated: "+names(workloads, workload.id)+" (default all)")
	flag.StringVar(&f.networks, "networks", "",
		"comma-separated: "+names(networks, network.id)+" (default all)")
	flag.StringVar(&f.ways, "snapshotters", "",
		"comma-separated: "+names(ways, way.id)+" (default all)")
	flag.IntVar(&f.runs, "n", 5, "runs of everything; 0 only builds the images")
	flag.BoolVar(&f.quick, "quick", false,
		"what is not chosen: workload python, network region, one run")
	flag.BoolVar(&f.files, "files", false, "measure only file operations on complete layers")
	flag.StringVar(&f.out, "out", "build/bench",
		"folder for bench.json, bench.svg and the logs of starts that failed")
	flag.DurationVar(&f.limit, "limit", 4*time.Hour, "begin no further measurement after this time")
	flag.DurationVar(&f.timeout, "timeout", 3*time.Minute, "longest time of one measurement")
	flag.DurationVar(&f.quiet, "quiet", 20*time.Second,
		"longest wait for an idle machine before each measurement")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, f)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

func bench(ctx context.Context, f flags) (err error) {
	began := time.Now()
	if f.quick {
		f.shorten()
	}
	p, err := f.plan()
	if err != nil {
		return err
	}
	r, err := newResults(ctx, p)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.out, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := openLab(ctx, dir, filepath.Join(f.out, "logs"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()

	save := func() error {
		r.Seconds = round(time.Since(began).Seconds())
		return r.save(p, f.out)
	}
	var failed error
	if !f.files {
		failed = l.starts(ctx, p, f, began.Add(f.limit), r, save)
	}
	if failed == nil && ctx.Err() == nil && f.runs > 0 && (f.files || !f.quick) {
		r.Files, failed = l.files(ctx, f.runs)
	}
	if len(r.Starts)+len(r.Files) == 0 {
		return failed
	}
	r.table(os.Stdout, p)
	return errors.Join(failed, save())
}

// shorten makes the run a quick one, as far as the user has not chosen.
func (f *flags) shorten() {
	given := map[string]bool{}
	flag.Visit(func(g *flag.Flag) { given[g.Name] = true })
	for name, set := range map[string]func(){
		"workloads": func() { f.workloads = "python" },
		"networks":  func() { f.networks = "region" },
		"n":         func() { f.runs = 1 },
		"quiet":     func() { f.quiet = 3 * time.Second },
	} {
		if !given[name] {
			set()
		}
	}
}

// starts measures all starts of the plan, one run of everything after the
// other, so that what changes with time changes for all. It returns an error
// at the end if a start has failed or has printed something else than the others.
func (l *lab) starts(ctx context.Context, p plan, f flags, deadline time.Time, r *results, save func() error) error {
	for _, w := range p.workloads {
		say("preparing %s (built the first time, which takes minutes)", w.name)
		info, err := l.prepare(ctx, w, p.ways)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		r.Images = append(r.Images, info)
	}
	c := &checks{printed: map[string]string{}}
	for run := 1; run <= f.runs; run++ {
		for _, n := range p.networks {
			for _, w := range p.workloads {
				for _, y := range p.ways {
					if time.Now().After(deadline) {
						say("time is up: the medians are of fewer runs")
						return c.err()
					}
					for _, m := range l.measure(ctx, f.options, w, n, y, run) {
						if ctx.Err() != nil {
							return ctx.Err() // what was under way does not count
						}
						progress(m.start)
						c.add(m)
						r.add(m)
					}
				}
			}
		}
		if err := save(); err != nil {
			return err
		}
	}
	return c.err()
}

// progress tells of one start.
func progress(s start) {
	if s.Error != "" {
		say("%-6s %-7s %-14s FAILED: %s", s.Network, s.Workload, s.Way, s.Error)
		return
	}
	say("%-6s %-7s %-14s pull %.2f, create %.2f, start %.2f, ready %.2f: %.2f s; %.1f MB, %.0f requests; local after %.2f s; strangers %.0f%%",
		s.Network, s.Workload, s.Way, s.Pull, s.Create, s.Start, s.Ready, s.Total, s.Bytes/1e6, s.Requests, s.Local, 100*s.Strangers)
}

// checks finds starts that did not do what they should.
type checks struct {
	printed map[string]string // by a workload's program
	errs    []error
}

func (c *checks) add(m measured) {
	if m.Error != "" {
		c.errs = append(c.errs, fmt.Errorf("%s by %s over %s: %s", m.Workload, m.Way, m.Network,
			m.Error))
		return
	}
	program := m.Workload
	if strings.HasSuffix(m.Way, "-read") {
		program += " read"
	}
	if first, ok := c.printed[program]; ok && first != m.output {
		c.errs = append(c.errs, fmt.Errorf("%s by %s printed %q, before %q", m.Workload, m.Way,
			m.output, first))
	}
	c.printed[program] = m.output
}

func (c *checks) err() error { return errors.Join(c.errs...) }

// newResults describes the circumstances.
func newResults(ctx context.Context, p plan) (*results, error) {
	version, err := node.Command(ctx, "mica", "--version")
	if err != nil {
		return nil, err
	}
	var u unix.Utsname
	var s unix.Sysinfo_t
	if err := errors.Join(unix.Uname(&u), unix.Sysinfo(&s)); err != nil {
		return nil, err
	}
	r := &results{Version: 1, Mica: strings.TrimSpace(version),
		Began: time.Now().UTC().Truncate(time.Second), Machine: machineInfo{
			Processors: runtime.NumCPU(), Memory: int64(s.Totalram) * int64(s.Unit), Kernel: unix.ByteSliceToString(u.Release[:]),
		}}
	for _, n := range p.networks {
		r.Networks = append(r.Networks,
			networkInfo{n.name, n.about, n.profile.RTT.Seconds(), n.profile.Rate,
				n.profile.ConnRate})
	}
	return r, nil
}

// add takes in a start, and its waterfall where that is the best so far.
func (r *results) add(m measured) {
	r.Starts = append(r.Starts, m.start)
	if m.waterfall != nil && (r.Waterfall == nil || m.waterfall.worth() >= r.Waterfall.worth()) {
		r.Waterfall = m.waterfall
	}
}

// save writes all that was measured so far.
func (r *results) save(p plan, dir string) error {
	r.summarise(p)
	if err := r.write(filepath.Join(dir, "bench.json")); err != nil {
		return err
	}
	return r.draw(p, filepath.Join(dir, "bench.svg"))
}
