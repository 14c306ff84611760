package main

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// table prints the medians and how they stand to what Mica promises.
func (r *results) table(out io.Writer, p plan) {
	r.summarise(p)
	for _, i := range r.Images {
		fmt.Fprintf(out, "%-7s %s: %d layers, %.0f MB, unpacked %.0f MB; profile %.1f MB\n",
			i.Workload, i.About, i.Layers,
			float64(i.Compressed)/1e6, float64(i.Unpacked)/1e6, float64(i.Profile)/1e6)
	}
	for _, n := range p.networks {
		r.networkTable(out, n)
	}
	if len(r.Medians) > 0 {
		r.goals(out, p)
	}
	r.fileTable(out)
}

func (r *results) networkTable(out io.Writer, n network) {
	var rows []median
	for _, m := range r.Medians {
		if m.Network == n.name {
			rows = append(rows, m)
		}
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s: %s; medians, seconds\n\n", n.name, n.about)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "workload\tsnapshotter\truns\tpull\tcreate\tstart\tready\ttotal\t/overlayfs\t/B\tlocal\tMB\trequests\tCPU containerd\tmicad\tmicad whole\tmicad MiB\t")
	for _, m := range rows {
		if m.Runs == 0 {
			fmt.Fprintf(w, "%s\t%s\tfailed\t%s\n", m.Workload, m.Way,
				"\t\t\t\t\t\t\t\t\t\t\t\t\t\t")
			continue
		}
		runs := fmt.Sprint(m.Runs)
		if m.Failed > 0 {
			runs += fmt.Sprintf(" (%d failed)", m.Failed)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%s\t%s\t%s\t%.1f\t%.0f\t%.2f\t%s\t%s\t%s\t\n", m.Workload, m.Way, runs,
			m.Pull, m.Create, m.Start, m.Ready, m.Total, known(m.OfOverlayfs), known(m.OfB), known(m.Local), m.Bytes/1e6, m.Requests,
			m.ContainerdCPU, known(m.MicadCPU), known(m.MicadWholeCPU), known(m.MicadPeak/(1<<20)))
	}
	_ = w.Flush() // to standard output, as all that is printed here
}

// known writes a number, or a dash for one that was not measured.
func known(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}

// goal is one promise, checked on the medians: the value of each subject must be at most limit.
type goal struct {
	name  string
	limit float64
	value func(r *results, n network, w workload) float64 // 0: not measured
}

// ratio is the quotient of something of two ways' medians.
func ratio(over, under string, a, b func(median) float64) func(*results, network, workload) float64 {
	return func(r *results, n network, w workload) float64 {
		d := b(r.find(subject{w.name, n.name, under}))
		if d == 0 {
			return 0
		}
		return a(r.find(subject{w.name, n.name, over})) / d
	}
}

func total(m median) float64 { return m.Total }
func local(m median) float64 { return m.Local }
func pull(m median) float64  { return m.Pull }

// goals are what Mica has to reach.
var goals = []goal{
	{"profile: total / B", 1.4, func(r *results, n network, w workload) float64 {
		return r.find(subject{w.name, n.name, micaProfile}).OfB
	}},
	{"no profile: total / overlayfs's", 0.6, ratio("mica", overlayfs, total, total)},
	{"every byte read: total / overlayfs's", 1, ratio(micaRead, overlayfsRead, total, total)},
	{"all layers local / overlayfs's pull", 1, ratio("mica", overlayfs, local, pull)},
	{"whole image: CPU of micad / of containerd by overlayfs", 1, ratio("mica", overlayfs,
		func(m median) float64 { return m.MicadWholeCPU }, func(m median) float64 { return m.ContainerdCPU })},
	{"peak memory of micad, MiB", 128, func(r *results, n network, w workload) float64 {
		var most float64
		for _, y := range []string{"mica", micaProfile, micaRead} {
			most = max(most, r.find(subject{w.name, n.name, y}).MicadPeak/(1<<20))
		}
		return most
	}},
}

// goals prints for each goal the worst subject and the geometric mean of all.
func (r *results) goals(out io.Writer, p plan) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\ngoal\tat most\tworst\tat\tgeometric mean\t")
	for _, g := range goals {
		var worst, logs float64
		var at string
		count, missed := 0, 0
		for _, n := range p.networks {
			for _, wl := range p.workloads {
				v := g.value(r, n, wl)
				if v == 0 {
					continue
				}
				count++
				logs += math.Log(v)
				if v > g.limit {
					missed++
				}
				if v > worst {
					worst, at = v, wl.name+", "+n.name
				}
			}
		}
		if count > 0 {
			fmt.Fprintf(w, "%s\t%.4g\t%.2f\t%s\t%.2f\t%s\n", g.name, g.limit, worst, at,
				math.Exp(logs/float64(count)), verdict(missed, count))
		}
	}
	_ = w.Flush()
}

func verdict(missed, count int) string {
	if missed == 0 {
		return "reached"
	}
	return fmt.Sprintf("missed by %d of %d", missed, count)
}
