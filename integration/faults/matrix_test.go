package faults_test

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

var (
	update = flag.Bool("update", false, "write the matrix into docs/reliability.md")
	only   = flag.String("rows", "", "only rows whose names match this expression")
)

// atOnce is how many rows are made at the same time: they wait more than they work.
const atOnce = 3

// TestMatrix makes the fault matrix, after a look whether the engine would see what it is about.
func TestMatrix(t *testing.T) {
	r := fixture.Registry(t)
	if err := faults.Push(fixture.Context(t), r, smallProbe(t)); err != nil {
		t.Fatal(err)
	}
	t.Run("sees", func(t *testing.T) { sees(t, r) })
	t.Run("matrix", func(t *testing.T) { matrix(t, r) })
}

// A row without a fault is good but for the cells whose readers expect other bytes than those of
// the image.
func sees(t *testing.T, r *registry.Registry) {
	other := known.Tree{Seed: 99, Files: 90, Size: 124 << 10}
	row, err := faults.Try(fixture.Context(t), t.TempDir(), r, faults.Fault{
		Name:   "nothing happens",
		Strike: func(context.Context, *faults.Stage) error { return nil },
		Expect: map[faults.Column]known.Tree{faults.Load: other, faults.Idle: other},
	})
	problems := row.Problems(err)
	for _, want := range []string{"load: ", "idle: "} {
		if !slices.ContainsFunc(problems,
			func(p string) bool {
				return strings.HasPrefix(p, want) &&
					strings.Contains(p, "wrong bytes")
			}) {
			t.Errorf("no wrong bytes in %s%q", want, problems)
		}
	}
	if len(problems) != 2 {
		t.Errorf("%d problems, want 2: %q", len(problems), problems)
	}
}

// The fault matrix: no wrong bytes anywhere, no failed reads, none that takes longer than it may,
// and all goes on by itself.
func matrix(t *testing.T, r *registry.Registry) {
	ctx := fixture.Context(t)
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
	path := filepath.Join(root, "docs", "reliability.md")
	if err := faults.Update(path, "matrix", table); err != nil {
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

// upgrade builds a micad of another version, and puts today's beside it, where the row upgrade has
// it installed.
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
	cmd := exec.CommandContext(fixture.Context(t), "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", ldflags, "-o", path, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkg, err, out)
	}
}
