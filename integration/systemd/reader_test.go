package systemd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
)

// tree is what readers read. It lasts for half a minute of first reads.
var tree = known.Tree{Seed: 21, Files: 600, Size: 24 << 10}

// noShares keeps ctr from asking for a share of the processors: no controller is the machine's.
const noShares = "--cpu-shares=0"

// fetchOnDemand has micad fetch nothing ahead of readers.
const fetchOnDemand = "[fetch]\nfill = \"none\"\n"

// served is the reference of an indexed image of tree with its reader, at a registry of this
// machine's.
func served(t *testing.T) string {
	t.Helper()
	ctx := fixture.Context(t)
	r := fixture.Registry(t)
	program, err := os.ReadFile(fixture.Probe(t))
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.Known(tree, "data", 2, images.File("probe", 0o755, program))
	if err != nil {
		t.Fatal(err)
	}
	ref := fixture.Push(t, r, "known", img)
	if _, err := node.Command(ctx, "mica", "index", "create", "--span-size", "128KiB", "--push",
		fixture.Direct(r, "known")); err != nil {
		t.Fatal(err)
	}
	return ref
}

// withContainerd gives a machine that is switched off containerd, which may reach a registry. It
// returns what is to be installed.
func (m *machine) withContainerd(ref string) (installed string) {
	m.t.Helper()
	m.shared = true
	installed = m.t.TempDir()
	if err := os.MkdirAll(installed+"/usr/local/bin", 0o755); err != nil {
		m.t.Fatal(err)
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		path, err := node.Binary(name)
		if err == nil {
			err = os.Symlink(path, installed+"/usr/local/bin/"+name)
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
	host := filepath.Dir(ref)
	m.write("etc/containerd/certs.d/"+host+"/hosts.toml",
		fmt.Sprintf("server = \"http://%s\"\n", host))
	m.write("etc/systemd/system/containerd.service", "[Unit]\nDefaultDependencies=no\n[Service]\n"+
		"Type=notify\nKillMode=process\nDelegate=yes\nExecStart=/usr/local/bin/containerd\n"+
		"StandardError=append:/mnt/containerd.log\n")
	return installed
}

// reader is a lazy container that reads all the time.
type reader struct {
	m   *machine
	out string
}

// reads starts a reader of an image that it pulls.
func (m *machine) reads(ref, id string) *reader {
	m.t.Helper()
	m.run("ctr", "images", "pull", "--hosts-dir", "/etc/containerd/certs.d", "--snapshotter", "mica",
		ref)
	m.run("ctr", "run", "-d", noShares, "--snapshotter", "mica", "--log-uri", "file:///mnt/"+id,
		ref, id, "/probe", "load", tree.String(), "/data", "2", "50ms")
	r := &reader{m, filepath.Join(m.work, id)}
	m.eventually("the reader's start", func() error { _, err := r.report(); return err })
	m.run("ctr", "tasks", "kill", "-s", "SIGUSR1", id)
	r.goesOn()
	return r
}

// report is the reader's latest.
func (r *reader) report() (report known.Report, err error) {
	b, err := os.ReadFile(r.out)
	if err != nil {
		return report, err
	}
	lines := bytes.Split(b, []byte("\n"))
	if len(lines) < 2 {
		return report, fmt.Errorf("it has written %q", b)
	}
	return report, json.Unmarshal(lines[len(lines)-2], &report)
}

// goesOn waits until the reader has read what nobody had read before, and tells when a read has
// failed.
func (r *reader) goesOn() {
	r.m.t.Helper()
	before, _ := r.report()
	if before.Cold > tree.Files-20 {
		r.m.fatal(fmt.Errorf("the reader has read all: %+v", before))
	}
	r.m.eventually("the reader to read on", func() error {
		now, err := r.report()
		if err == nil && now.Cold < before.Cold+10 {
			err = fmt.Errorf("it reads nothing new: %+v", now)
		}
		return err
	})
	if now, err := r.report(); err != nil || now.Failed+now.Wrong > 0 {
		r.m.fatal(fmt.Errorf("reads failed: %+v, %w", now, err))
	}
}

// ends has the reader read all that is left, and end, and removes its container.
func (r *reader) ends() {
	r.m.t.Helper()
	id := filepath.Base(r.out)
	r.m.run("ctr", "tasks", "kill", "-s", "SIGUSR2", id)
	var last known.Report
	r.m.eventually("the reader's end", func() (err error) {
		if last, err = r.report(); err == nil && !last.Passed {
			err = fmt.Errorf("%+v", last)
		}
		return err
	})
	if last.Failed+last.Wrong > 0 {
		r.m.fatal(fmt.Errorf("reads failed: %+v", last))
	}
	r.m.t.Logf("%d reads, none failed, the longest took %v", last.Reads, last.Longest)
	r.m.eventually("the container's removal", func() error {
		_, err := r.m.tryRun("ctr", "tasks", "delete", id)
		return err
	})
	r.m.run("ctr", "containers", "delete", id)
}
