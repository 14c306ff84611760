package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mica-snapshotter/mica/cmd/page/chart"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// waterfall is one start in detail. Times are seconds since the pull began.
type waterfall struct {
	subject
	Pulled   float64   `json:"pulled"`
	Created  float64   `json:"created"`
	Started  float64   `json:"started"`
	Ready    float64   `json:"ready"`
	Local    float64   `json:"local,omitempty"` // 0: not seen
	Requests []request `json:"requests"`
	Waits    []wait    `json:"waits,omitempty"`
}

// wait is a read of a lazy layer that waited for its bytes, a millisecond at the least.
type wait struct {
	Layer string  `json:"layer"`  // digest
	Off   int64   `json:"offset"` // in the uncompressed tar
	Bytes int64   `json:"bytes"`
	Begin float64 `json:"begin"`
	End   float64 `json:"end"`
}

// request is one request to the registry. First and Last are the times at which
// the answer's first and last byte arrived.
type request struct {
	Method string  `json:"method"`
	Path   string  `json:"path"`
	Range  string  `json:"range,omitempty"` // the header
	Status int     `json:"status"`
	Sent   float64 `json:"sent"`
	First  float64 `json:"first"`
	Last   float64 `json:"last"`
	Bytes  int64   `json:"bytes"` // of the body
}

// moments are the times of a start; local is zero where it was not seen.
type moments struct{ begin, pulled, created, started, ready, local time.Time }

func newWaterfall(of subject, m moments, requests []registry.Timed) *waterfall {
	since := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return t.Sub(m.begin).Seconds()
	}
	w := &waterfall{subject: of, Pulled: since(m.pulled), Created: since(m.created),
		Started: since(m.started), Ready: since(m.ready), Local: since(m.local)}
	for _, r := range requests {
		w.Requests = append(w.Requests,
			request{r.Method, r.Path, r.Range, r.Status, since(r.Sent), since(r.First),
				since(r.Last), r.Bytes})
	}
	return w
}

// readWaits takes the reads that waited from micad's log, whose level is debug.
func readWaits(log io.Reader, begin time.Time) (waits []wait, err error) {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !strings.Contains(lines.Text(), `msg="read waited"`) {
			continue
		}
		var w wait
		var at, took string
		for _, f := range strings.Fields(lines.Text()) {
			k, v, _ := strings.Cut(f, "=")
			switch k {
			case "time":
				at = v
			case "layer":
				w.Layer = v
			case "off":
				w.Off, err = strconv.ParseInt(v, 10, 64)
			case "bytes":
				w.Bytes, err = strconv.ParseInt(v, 10, 64)
			case "took":
				took = v
			}
			if err != nil {
				return nil, fmt.Errorf("micad's log: %q: %w", lines.Text(), err)
			}
		}
		end, err1 := time.Parse(time.RFC3339Nano, at)
		d, err2 := time.ParseDuration(took)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("micad's log: %q: %w", lines.Text(), err)
		}
		w.End = end.Sub(begin).Seconds()
		w.Begin = w.End - d.Seconds()
		waits = append(waits, w)
	}
	return waits, lines.Err()
}

// worth tells which start is drawn: rather Mica with a profile than without,
// rather a program that reads some than one that reads little, and of equals
// the last one.
func (w *waterfall) worth() int {
	worth := slices.Index([]string{"mica", micaProfile}, w.Way) + 1
	return 100*worth + 10*slices.Index([]string{"hello", "python", "redis", "node"},
		w.Workload) + slices.Index([]string{"rack", "far", "region"}, w.Network)
}

// draw writes the figure to a file.
func (r *results) draw(p plan, path string) error {
	f := chart.Figure{
		Title: "Time to ready",
		Notes: []string{r.Mica + ", " + r.Began.Format("2 January 2006") +
			"; medians in seconds, cold caches; each panel has its own scale"},
		Phases: []string{"pull", "create and start", "ready"},
		Mark:   "B, about the physical limit",
	}
	shown := toReady(p.ways)
	for _, y := range shown {
		f.Series = append(f.Series, y.name)
	}
	for _, n := range p.networks {
		row := chart.Row{Title: n.name + ": " + n.about}
		for _, w := range p.workloads {
			row.Panels = append(row.Panels, r.panel(shown, n, w))
		}
		f.Rows = append(f.Rows, row)
	}
	if r.Waterfall != nil {
		f.Waterfall = r.Waterfall.figure()
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Write(file), file.Close())
}

// toReady leaves out the ways that start another program than the image's.
func toReady(ways []way) []way {
	return slices.DeleteFunc(slices.Clone(ways), func(y way) bool { return y.read })
}

func (r *results) panel(ways []way, n network, w workload) chart.Panel {
	panel := chart.Panel{Title: w.name}
	for i, y := range ways {
		m := r.find(subject{w.name, n.name, y.name})
		if m.Runs == 0 {
			continue
		}
		panel.Bars = append(panel.Bars,
			chart.Bar{Series: i, Parts: []float64{m.Pull, m.Create + m.Start, m.Ready},
				Total: m.Total})
		if m.B > 0 {
			panel.Mark = m.B
		}
	}
	return panel
}

// figure draws what was sent, and who waited, until the program was ready; what came later would
// make that part small.
func (w *waterfall) figure() *chart.Waterfall {
	f := &chart.Waterfall{
		Title: fmt.Sprintf("One start: %s by %s over %s, requests and waits until ready",
			w.Workload, w.Way, w.Network),
		Marks: []chart.Mark{{Label: "pulled", At: w.Pulled}, {Label: "created", At: w.Created},
			{Label: "started", At: w.Started}, {Label: "ready", At: w.Ready}},
	}
	for _, r := range w.Requests {
		if r.Sent > w.Ready {
			continue
		}
		f.Requests = append(f.Requests,
			chart.Request{Label: r.label(), Kind: r.kind(), Sent: r.Sent,
				First: min(r.First, w.Ready), Last: min(r.Last, w.Ready), Bytes: float64(r.Bytes)})
	}
	for _, r := range w.Waits {
		if r.Begin > w.Ready {
			continue
		}
		_, hex, _ := strings.Cut(r.Layer, ":")
		end := min(r.End, w.Ready)
		f.Requests = append(f.Requests,
			chart.Request{Label: fmt.Sprintf("read %.12s %d+%d", hex, r.Off, r.Bytes),
				Kind: "read that waits",
				Sent: r.Begin, First: end, Last: end, Bytes: float64(r.Bytes)})
	}
	slices.SortStableFunc(f.Requests,
		func(a, b chart.Request) int { return cmp.Compare(a.Sent, b.Sent) })
	return f
}

// kind is what a request asks for.
func (r request) kind() string {
	switch {
	case strings.Contains(r.Path, "/blobs/") && r.Range != "":
		return "range of a blob"
	case strings.Contains(r.Path, "/blobs/"):
		return "blob"
	case strings.Contains(r.Path, "/referrers/"):
		return "referrers"
	case strings.Contains(r.Path, "/manifests/"):
		return "manifest"
	}
	return "other"
}

// label names the object by the start of its digest or by its tag, and the range.
func (r request) label() string {
	name := r.Path[strings.LastIndexByte(r.Path, '/')+1:]
	if _, hex, ok := strings.Cut(name, ":"); ok {
		name = hex
	}
	text := r.Method + " " + name[:min(len(name), 12)]
	if r.Range != "" {
		text += " " + strings.TrimPrefix(r.Range, "bytes=")
	}
	if r.Status >= 400 {
		text += fmt.Sprintf(" (%d)", r.Status)
	}
	return text
}
