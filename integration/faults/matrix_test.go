package faults_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

var (
	update = flag.Bool("update", false, "write the matrix into docs/reliability.md")
	only   = flag.String("rows", "", "only rows whose names match this expression")
)

// atOnce is how many rows are made at the same time: they wait more than they work.
const atOnce = 4

// The fault matrix: no wrong bytes anywhere, no failed reads, none that takes longer than it may, and all
// goes on by itself.
func TestMatrix(t *testing.T) {
	ctx := fixture.Context(t)
	r := fixture.Registry(t)
	if err := faults.Push(ctx, r, smallProbe(t)); err != nil {
		t.Fatal(err)
	}
	list := chosen(t, faults.Faults(upgrade(t)))
	byName := map[string]faults.Row{}
	faults.All(ctx, t.TempDir(), r, list, atOnce, func(row faults.Row, err error) {
		byName[row.Fault.Name] = row
		problems := row.Problems(err)
		t.Logf("%s took %.1f s", row.Fault.Name, row.Took.Seconds())
		for _, problem := range problems {
			t.Errorf("%s: %s", row.Fault.Name, problem)
		}
		if len(problems) > 0 {
			t.Logf("%s: micad's log ends:\n%s", row.Fault.Name, row.Log)
		}
	})
	var rows []faults.Row
	for _, f := range list {
		rows = append(rows, byName[f.Name])
	}
	table := faults.Table(rows)
	t.Logf("reads/failed/wrong and the longest wait, × tries:\n%s", table)
	if !*update || t.Failed() || *only != "" {
		return
	}
	root, err := node.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	if err := faults.Update(filepath.Join(root, "docs", "reliability.md"), table); err != nil {
		t.Fatal(err)
	}
}

func chosen(t *testing.T, all []faults.Fault) []faults.Fault {
	t.Helper()
	match, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	var list []faults.Fault
	for _, f := range all {
		if match.MatchString(f.Name) {
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		t.Fatalf("no row matches %q", *only)
	}
	return list
}

// smallProbe builds the probe without what a debugger needs: it is in all images.
func smallProbe(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "probe")
	build(t, "", path, "-s -w", "github.com/mica-snapshotter/mica/integration/cmd/probe")
	return path
}

// upgrade builds a micad of another version, and puts today's beside it, where the row upgrade has it installed.
func upgrade(t *testing.T) string {
	t.Helper()
	root, err := node.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "micad")
	build(t, root, path, "-X main.version="+faults.UpgradedVersion, "./cmd/micad")
	today, err := node.Binary("micad")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "installed"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := node.CopyFile(filepath.Join(dir, "installed", "micad"), today); err != nil {
		t.Fatal(err)
	}
	return path
}

func build(t *testing.T, dir, path, ldflags, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(fixture.Context(t), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", path, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkg, err, out)
	}
}
