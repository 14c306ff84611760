// Package profile records real containers with the mica command, and publishes what they read.
package profile

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

func record(ctx context.Context, args ...string) (string, error) {
	return node.Command(ctx, "mica", append([]string{"profile", "record"}, args...)...)
}

func TestMain(m *testing.M) { fixture.Main(m) }

// The image's program runs as ever; what it reads is recorded, written and published, and a second
// run is merged with the first.
func TestRecord(t *testing.T) {
	const repo = "debian"
	r, ctx := fixture.Registry(t), fixture.Context(t) // its own: a profile is published there
	fixture.Push(t, r, repo, fixture.Debian(t))
	fixture.Index(t, r, repo)
	scratch(t)
	ref := fixture.Direct(r, repo)
	for run := 1; run <= 2; run++ {
		file := filepath.Join(t.TempDir(), "p.json")
		out, err := record(ctx, "--push", "-o", file, ref)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(out, images.Started+"\n") || !strings.Contains(out, images.Ready+"\n") {
			t.Errorf("the program printed\n%s", out)
		}
		if want := fmt.Sprintf("from %d runs", run); !strings.Contains(out, want) {
			t.Errorf("run %d published something else than a profile %s:\n%s", run, want, out)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var p profile.Profile
		if err := json.Unmarshal(b, &p); err != nil {
			t.Fatal(err)
		}
		checkRanges(t, &p)
	}
}

// checkRanges checks that a profile is of the image, and of a part of it that a program may need.
func checkRanges(t *testing.T, p *profile.Profile) {
	t.Helper()
	m, err := fixture.Debian(t).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var layers []string
	for _, l := range m.Layers {
		layers = append(layers, l.Digest.String())
	}
	for _, r := range p.Ranges {
		if !slices.Contains(layers, r.Layer.String()) {
			t.Errorf("a range of layer %s, the image has %v", r.Layer, layers)
		}
	}
	size, err := images.Size(fixture.Debian(t))
	if err != nil {
		t.Fatal(err)
	}
	if n := p.Bytes(); n < 1<<20 || n > size {
		t.Errorf("%d bytes recorded, of an image of %d compressed", n, size)
	}
}

// A container that does not end is ended when it is calm, or its time is up.
func TestRecordEnds(t *testing.T) {
	_, ref, _ := fixture.ServedDebian(t, true)
	ctx := fixture.Context(t)
	scratch(t)
	for name, args := range map[string][]string{
		"calm":    {"--calm", "1s", ref, "--", "sh", "-c", "echo here; exec sleep 600"},
		"timeout": {"--timeout", "2s", ref, "--", "sleep", "600"},
	} {
		start := time.Now()
		out, err := record(ctx, args...)
		if err != nil || !strings.Contains(out, "recorded") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if d := time.Since(start); d < time.Second || d > 30*time.Second {
			t.Errorf("%s: it took %s", name, d)
		}
	}
}

// A container that fails leaves no profile.
func TestRecordFails(t *testing.T) {
	_, ref, _ := fixture.ServedDebian(t, true)
	ctx := fixture.Context(t)
	scratch(t)
	file := filepath.Join(t.TempDir(), "p.json")
	out, err := record(ctx, "-o", file, ref, "--", "sh", "-c", "exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a profile was written")
	}
}

// scratch gives mica a folder for temporary files. When the test ends, nothing may be left there,
// nor mounted.
func scratch(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, dir) {
				t.Errorf("left mounted: %s", line)
			}
		}
	})
}
