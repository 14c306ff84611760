package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/mica-snapshotter/mica/integration/registry"
)

const (
	fallWidth = 44 // columns of the time
	fallMost  = 24 // requests that are drawn
)

// waterfall draws a start's requests over time, a line each, width columns from the pull's begin
// until the program is ready.
func waterfall(r result, width int) string {
	total := r.total()
	at := func(t time.Duration) int {
		return min(int(float64(width)*t.Seconds()/total.Seconds()), width)
	}
	var b strings.Builder
	line := func(what, drawn, behind string) {
		fmt.Fprintf(&b, "  %-22s |%-*s| %s\n", what, width, drawn, behind)
	}
	shown := r.requests[:min(len(r.requests), fallMost)]
	for _, q := range shown {
		sent, first, last := at(q.Sent.Sub(r.begin)), at(q.First.Sub(r.begin)), at(q.Last.Sub(r.begin))
		drawn := strings.Repeat(" ", sent) + strings.Repeat(".", max(first-sent, 0)) +
			strings.Repeat("#", max(min(last, width-1)-first+1, 0))
		line(asked(q), drawn, fmt.Sprintf("%7.2f MB", megabytes(q.Bytes)))
	}
	if more := len(r.requests) - len(shown); more > 0 {
		line(fmt.Sprintf("%d more requests", more), "", "")
	}
	phase := func(what string, from, to time.Duration) {
		drawn := strings.Repeat(" ", at(from)) + strings.Repeat("=", max(at(to)-at(from), 1))
		line(what, drawn, fmt.Sprintf("%7.2f s", (to-from).Seconds()))
	}
	phase("pull", 0, r.pull)
	phase("container's start", r.pull, r.pull+r.start)
	phase("program until ready", r.pull+r.start, total)
	return b.String()
}

// asked says what a request is for.
func asked(q registry.Timed) string {
	name := q.Path[strings.LastIndexByte(q.Path, '/')+1:]
	if _, hex, ok := strings.Cut(name, ":"); ok {
		name = hex
	}
	name = name[:min(len(name), 10)]
	switch {
	case strings.Contains(q.Path, "/referrers/"), strings.HasPrefix(name, "sha256-"):
		return "index? profile?"
	case strings.Contains(q.Path, "/manifests/"):
		return "manifest " + name
	case q.Range != "":
		return "part of " + name
	case strings.Contains(q.Path, "/blobs/"):
		return "blob " + name
	}
	return q.Method + " " + q.Path[max(len(q.Path)-16, 0):]
}
