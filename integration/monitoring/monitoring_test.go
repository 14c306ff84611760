// Package monitoring tests the alert rules and the dashboard of script/monitoring: a real micad
// serves every metric and label that they name.
package monitoring

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// folder is where the rules and the dashboard are.
const folder = "../../script/monitoring"

// targetLabels are what Prometheus adds to what it scrapes.
var targetLabels = []string{"job", "instance"}

// variable is a variable of a legend or of an annotation: {{mode}}, {{ $labels.instance }}.
var variable = regexp.MustCompile(`{{\s*(?:\$labels\.)?(\w+)\s*}}`)

func TestMonitoring(t *testing.T) {
	served := metrics(t)
	used := map[string]bool{}
	// check looks at an expression and at the texts that name labels of what it makes.
	check := func(where, expr string, texts ...string) {
		e, err := parser.NewParser(parser.Options{}).ParseExpr(
			strings.ReplaceAll(expr, "$__rate_interval", "5m"))
		if err != nil {
			t.Errorf("%s: %s: %v", where, expr, err)
			return
		}
		labels := slices.Clone(targetLabels)
		var named []string
		parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
			switch n := n.(type) {
			case *parser.VectorSelector:
				has, ok := served[n.Name]
				if !ok {
					t.Errorf("%s: micad has no %s", where, n.Name)
				}
				used[n.Name] = true
				labels = append(labels, has...)
				for _, m := range n.LabelMatchers {
					if m.Name != model.MetricNameLabel && !slices.Contains(has, m.Name) &&
						!slices.Contains(targetLabels, m.Name) {
						t.Errorf("%s: %s has no label %s", where, n.Name, m.Name)
					}
				}
			case *parser.AggregateExpr:
				named = append(named, n.Grouping...)
			}
			return nil
		})
		for _, v := range variable.FindAllStringSubmatch(strings.Join(texts, " "), -1) {
			named = append(named, v[1])
		}
		for _, name := range named {
			if !slices.Contains(labels, name) {
				t.Errorf("%s: nothing in %s has the label %s", where, expr, name)
			}
		}
	}
	checkRules(t, check)
	checkDashboard(t, check)
	for name := range served {
		if strings.HasPrefix(name, "mica_") && !used[name] {
			t.Errorf("neither an alert nor the dashboard shows %s", name)
		}
	}
}

// checkRules checks each alert, and that it says what to do.
func checkRules(t *testing.T, check func(where, expr string, texts ...string)) {
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For string
				Labels           map[string]string
				Annotations      map[string]string
			}
		}
	}
	read(t, "alerts.yaml", func(b []byte) error {
		d := yaml.NewDecoder(strings.NewReader(string(b)))
		d.KnownFields(true)
		return d.Decode(&file)
	})
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := 0
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			alerts++
			summary, todo := r.Annotations["summary"], r.Annotations["description"]
			check(r.Alert, r.Expr, summary, todo)
			if summary == "" || !strings.Contains(todo, "`") {
				t.Errorf("%s does not say what is wrong, or names no command", r.Alert)
			}
			if r.For != "" {
				if _, err := model.ParseDuration(r.For); err != nil {
					t.Errorf("%s: %v", r.Alert, err)
				}
			}
			row := "\n| `" + r.Alert + "` | " + r.Labels["severity"] + " |"
			if r.Labels["severity"] == "" || !strings.Contains(string(page), row) {
				t.Errorf("docs/operations.md has no row%s", row)
			}
		}
	}
	if alerts == 0 {
		t.Error("there are no alerts")
	}
}

// checkDashboard checks the queries of all panels.
func checkDashboard(t *testing.T, check func(where, expr string, texts ...string)) {
	var board struct {
		UID    string
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr, LegendFormat string }
		}
	}
	read(t, "dashboard.json", func(b []byte) error { return json.Unmarshal(b, &board) })
	if board.UID == "" || len(board.Panels) == 0 {
		t.Error("the dashboard has no uid or no panels")
	}
	for _, p := range board.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			check(p.Title, target.Expr, target.LegendFormat)
		}
	}
}

func read(t *testing.T, name string, decode func([]byte) error) {
	b, err := os.ReadFile(filepath.Join(folder, name))
	if err == nil {
		err = decode(b)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// metrics starts micad and returns the labels of its metrics by their names, and of Prometheus' own
// up.
func metrics(t *testing.T) map[string][]string {
	dir, ctx := t.TempDir(), fixture.Context(t)
	config, socket := filepath.Join(dir, "config.toml"), filepath.Join(dir, "micad.sock")
	err := os.WriteFile(config, []byte(`containerd_address = "none"`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	all := map[string][]string{"up": nil}
	ready := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet,
			"http://micad"+admin.PathMetrics, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		p := expfmt.NewTextParser(model.UTF8Validation)
		families, err := p.TextToMetricFamilies(resp.Body)
		for name, f := range families {
			all[name] = nil
			for _, l := range f.GetMetric()[0].GetLabel() {
				all[name] = append(all[name], l.GetName())
			}
		}
		return err
	}
	micad, err := node.StartProcess(ctx, "micad", filepath.Join(dir, "log"), nil,
		[]string{"micad", "--config", config, "--root", filepath.Join(dir, "root"),
			"--address", socket}, ready)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := micad.Stop(); err != nil {
			t.Error(err)
		}
	})
	return all
}
