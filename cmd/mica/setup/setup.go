// Package setup changes a machine's configuration so that containerd, and who uses it, pull by
// Mica: what mica setup does. A run plans all files that change, shows the difference, asks, writes
// them, and has containerd read the result. Nothing is restarted.
//
// What mica setup adds stands in files of its own (a drop-in that containerd imports) or in lines
// of their own. A record beside containerd's configuration has the bytes of each file before and
// after, by which Undo puts them back. Nothing runs in parallel.
package setup

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// Options say what is set up, and how.
type Options struct {
	Target  string // one of Targets
	Config  string // containerd's configuration; "": where the target has it
	Micad   string // micad's configuration
	Address string // micad's socket; "": the one of its configuration
	DryRun  bool   // show the difference and change nothing
	// BuildKit has containerd know the plugin for BuildKit too. In a plan it is also true where an
	// earlier run has done so.
	BuildKit bool
	Confirm  func() error
	Out      io.Writer
}

// target is something that can be told to use Mica.
type target struct {
	config   string // containerd's configuration
	cri      bool   // Kubernetes' pods are started by Mica
	required bool   // the target does not work without CRI
	restart  string // what is restarted, after micad
}

const (
	etcContainerd = "/etc/containerd/config.toml"
	rancherConfig = "/var/lib/rancher/%s/agent/etc/containerd/config.toml"
)

var targets = map[string]target{
	"containerd": {config: etcContainerd, cri: true, restart: "containerd"},
	"docker":     {config: etcContainerd, restart: "containerd docker"},
	"kubeadm":    {config: etcContainerd, cri: true, required: true, restart: "containerd"},
	"eks":        {config: etcContainerd, cri: true, required: true, restart: "containerd"},
	"kind":       {config: etcContainerd, cri: true},
	"k3s": {config: fmt.Sprintf(rancherConfig, "k3s"), cri: true,
		restart: "k3s (or k3s-agent)"},
	"rke2": {config: fmt.Sprintf(rancherConfig, "rke2"), cri: true,
		restart: "rke2-server (or rke2-agent)"},
}

// Targets are the names that Options.Target takes.
var Targets = []string{"containerd", "docker", "k3s", "rke2", "kubeadm", "kind", "eks"}

// header is the first line of files that are mica setup's own. Lines that it adds to others end in
// mark.
const (
	header = "# Written by mica setup, which takes it away with --undo.\n"
	mark   = " # mica setup"
)

// plan is what a run changes.
type plan struct {
	Options
	target
	daemon micad
	files  conf.Files // what is written, by path
	notes  []string   // what the user has to know
}

// micad is what a configuration of containerd has to agree with.
type micad struct {
	Root     string `toml:"root"`
	Address  string `toml:"address"`
	RemapIDs bool   `toml:"remap_ids"`
	BuildKit struct {
		Socket string `toml:"socket"`
	} `toml:"buildkit"`
}

// Run sets a machine up, or tells what it would change.
func Run(ctx context.Context, o Options) error {
	p, err := newPlan(ctx, o)
	if err != nil {
		return err
	}
	if o.BuildKit && o.Target != "docker" {
		p.notes = append(p.notes, "buildkitd is told the plugin by you: [worker.containerd] "+
			"snapshotter = \""+conf.Alias+"\"")
	}
	switch o.Target {
	case "kind":
		if o.BuildKit {
			return errors.New("--buildkit: micad's configuration is not made for kind's nodes")
		}
		return p.kind()
	case "k3s", "rke2":
		err = p.rancher()
	case "docker":
		err = errors.Join(p.containerd(ctx), p.docker())
	case "eks":
		err = errors.Join(p.containerd(ctx), p.eks())
	default:
		err = p.containerd(ctx)
	}
	if err != nil {
		return err
	}
	changes, err := changes(p.files)
	if err != nil {
		return err
	}
	for _, c := range changes {
		fmt.Fprint(o.Out, c.diff())
	}
	for _, n := range p.notes {
		fmt.Fprintln(o.Out, "note:", n)
	}
	if len(changes) == 0 {
		fmt.Fprintln(o.Out, "Nothing to change.")
		return nil
	}
	if o.DryRun {
		return nil
	}
	if err := o.Confirm(); err != nil {
		return err
	}
	undo, err := apply(recordPath(p.Config), changes)
	if err != nil {
		return err
	}
	if !p.rendered() {
		if _, err := dump(ctx, p.Config); err != nil {
			return errors.Join(fmt.Errorf("%w; all files are as they were", err), undo())
		}
	}
	p.finish()
	return nil
}

// Undo puts back all files that mica setup has changed for a target's containerd.
func Undo(ctx context.Context, o Options) error {
	p, err := newPlan(ctx, o)
	if err != nil {
		return err
	}
	changes, err := undone(recordPath(p.Config))
	if err != nil {
		return err
	}
	for _, c := range changes {
		fmt.Fprint(o.Out, c.diff())
	}
	if o.DryRun {
		return nil
	}
	if err := o.Confirm(); err != nil {
		return err
	}
	for _, c := range changes {
		if err := c.write(); err != nil {
			return err
		}
	}
	if err := os.Remove(recordPath(p.Config)); err != nil {
		return err
	}
	fmt.Fprintf(p.Out, "Now: systemctl restart micad\n"+
		"then systemctl restart %s. Containers that run go on reading from micad.\n", p.restart)
	return nil
}

// finish says what has to be restarted.
func (p *plan) finish() {
	fmt.Fprintf(p.Out, "Now: systemctl enable micad && systemctl restart micad\n"+
		"then systemctl restart %s; mica doctor checks the result.\n", p.restart)
}

// rendered says whether containerd's configuration is written anew by who starts containerd.
func (p *plan) rendered() bool { return p.Target == "k3s" || p.Target == "rke2" }

func newPlan(ctx context.Context, o Options) (*plan, error) {
	t, ok := targets[o.Target]
	if !ok {
		return nil, fmt.Errorf("%q %w: name one of %s", o.Target, ErrTarget,
			strings.Join(Targets, ", "))
	}
	o.Config = cmp.Or(o.Config, t.config)
	p := &plan{Options: o, target: t, files: conf.Files{},
		daemon: micad{Root: "/var/lib/micad", Address: admin.DefaultAddress, RemapIDs: true}}
	b, err := p.read(o.Micad)
	if err != nil {
		return nil, err
	}
	if err := toml.Unmarshal(b, &p.daemon); err != nil {
		return nil, fmt.Errorf("parse %s: %w", o.Micad, err)
	}
	p.daemon.Address = strings.TrimPrefix(cmp.Or(o.Address, p.daemon.Address), "unix://")
	var info admin.Info // a micad that runs knows better, it may have flags
	if admin.NewClient(p.daemon.Address).Get(ctx, admin.PathInfo, &info) == nil {
		p.daemon.Root, p.daemon.RemapIDs = info.Root, info.RemapIDs
	}
	return p, nil
}

// read returns what is, or will be, at path; nil where there is nothing.
func (p *plan) read(path string) ([]byte, error) {
	b, err := p.files.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// own plans a file that is mica setup's alone.
func (p *plan) own(path, content string) error {
	b, err := p.read(path)
	if err != nil {
		return err
	}
	if b != nil && !bytes.HasPrefix(b, []byte(header)) {
		return fmt.Errorf("%s is there, and mica setup has not written it: move it away", path)
	}
	p.files[path] = []byte(header + content)
	return nil
}
