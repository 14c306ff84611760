package main

import (
	"log/slog"
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// documented is a row of docs/metrics.md: a metric, its label, its type.
var documented = regexp.MustCompile("(?m)^\\| `(mica_\\w+(?:\\{\\w+\\})?)` \\| (\\w+) \\|")

// TestMetrics: what micad serves is named as Prometheus wants it, has no label that grows with
// images, and is what docs/metrics.md lists.
func TestMetrics(t *testing.T) {
	c := defaults()
	c.Root, c.Containerd = t.TempDir(), noContainerd
	d := &daemon{config: c, log: slog.New(slog.DiscardHandler)}
	if err := d.open(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	families, err := d.registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "mica_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}

	served := map[string]string{}
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "mica_") {
			continue
		}
		labelled := name
		for _, l := range f.GetMetric()[0].GetLabel() {
			if l.GetName() != "mode" {
				t.Errorf("%s has the label %s: has it a handful of values?", name, l.GetName())
			}
			labelled += "{" + l.GetName() + "}"
		}
		served[labelled] = strings.ToLower(f.GetType().String())
	}
	if len(served) != len(help()) {
		t.Errorf("%d metrics are served of %d", len(served), len(help()))
	}
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for _, row := range documented.FindAllStringSubmatch(string(page), -1) {
		listed[row[1]] = row[2]
	}
	if !maps.Equal(served, listed) {
		t.Errorf("served:\n%v\ndocs/metrics.md:\n%v", served, listed)
	}
}
