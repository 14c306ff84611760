package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// options of all measurements.
type options struct {
	quiet   time.Duration // longest wait for an idle machine before each
	timeout time.Duration // of each
}

// measured is one measurement with what is not in the medians.
type measured struct {
	start
	output    string // of the program
	waterfall *waterfall
}

// trial is a measurement under way.
type trial struct {
	*lab
	opts options
	w    workload
	net  network
	y    way
	node *node.Node
	pids []int // containerd, micad
}

// measure starts a workload on a node without any state. With the way
// overlayfs, a second start of the image that is then complete on the node
// is measured as well, for B.
func (l *lab) measure(ctx context.Context, opts options, w workload, n network, y way, runNo int) (list []measured) {
	t := &trial{lab: l, opts: opts, w: w, net: n, y: y}
	first := measured{start: start{subject: subject{w.name, n.name, y.name}, Run: runNo}}
	second := measured{start: start{subject: subject{w.name, n.name, again}, Run: runNo}}
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()

	err := t.open(ctx)
	if err == nil {
		err = t.start(ctx, &first, "first")
	}
	list = append(list, first)
	if y.name == overlayfs && err == nil {
		if e := t.start(ctx, &second, "second"); e != nil {
			second.Error = e.Error()
		}
		list = append(list, second)
	}
	if t.node != nil {
		if err != nil {
			err = errors.Join(err, t.keepLogs(runNo))
		}
		l.registry.SetProfile(shaper.Profile{})
		err = errors.Join(err, t.node.Close())
	}
	if err != nil {
		list[0].Error = err.Error()
	}
	return list
}

// open starts the node.
func (t *trial) open(ctx context.Context) error {
	t.registry.SetProfile(shaper.Profile{})
	n, err := node.Start(ctx, "", node.Options{NoMicad: t.y.snapshotter != node.Snapshotter,
		Containerd: t.y.containerd, Micad: "log_level = \"debug\""})
	if err != nil {
		return err
	}
	t.node, t.pids = n, []int{n.ContainerdPID()}
	// As on a node whose registry speaks plain HTTP. It tells micad the registry's port, too.
	if err := n.Trust(t.registry.Host()); err != nil {
		return err
	}
	if t.y.snapshotter == node.Snapshotter {
		t.pids = append(t.pids, n.MicadPID())
	}
	return nil
}

// start measures one start in a container named id.
func (t *trial) start(ctx context.Context, m *measured, id string) error {
	ref := t.ref(t.w, t.y.beside)
	if err := dropCaches(); err != nil {
		return err
	}
	if err := t.warm(ctx, t.direct(t.w, t.y.beside)); err != nil {
		return fmt.Errorf("read the image at the registry: %w", err)
	}
	if err := quiet(ctx, t.opts.quiet); err != nil {
		return err
	}
	t.registry.SetProfile(t.net.profile)
	t.registry.ResetTraffic()
	foreign, err := watchStrangers()
	if err != nil {
		return err
	}
	before, err := t.cpu()
	if err != nil {
		return err
	}

	begin := time.Now()
	if err := t.node.Pull(ctx, t.y.snapshotter, ref); err != nil {
		return err
	}
	pulled := time.Now()
	local := t.awaitLocal(ctx)
	defer local.stop()
	create := []string{"containers", "create", "--net-host", "--snapshotter", t.y.snapshotter, ref,
		id}
	if t.y.read {
		create = append(create, "/bin/sh", "-c", readAll)
	}
	if _, err := t.node.Ctr(ctx, create...); err != nil {
		return err
	}
	created := time.Now()
	program, err := t.run(ctx, id)
	if err != nil {
		return err
	}
	defer program.stop()

	traffic := t.registry.Traffic()
	m.Bytes, m.Requests, m.Connections = float64(traffic.Down), float64(t.registry.Sent()), float64(traffic.Conns)
	if m.Strangers, err = foreign.share(); err != nil {
		return err
	}
	after, err := t.cpu()
	if err != nil {
		return err
	}
	m.output = program.output()
	m.Pull, m.Create = pulled.Sub(begin).Seconds(), created.Sub(pulled).Seconds()
	m.Start, m.Ready = program.started.Sub(created).Seconds(), program.ready.Sub(program.started).Seconds()
	m.Total = program.ready.Sub(begin).Seconds()
	m.ContainerdCPU, m.MicadCPU = after[0]-before[0], after[1]-before[1]

	at, err := local.wait()
	if err != nil {
		return err
	}
	if after, err = t.cpu(); err != nil {
		return err
	}
	if !at.IsZero() {
		m.Local = at.Sub(begin).Seconds()
		m.ContainerdWholeCPU, m.MicadWholeCPU = after[0]-before[0], after[1]-before[1]
	}
	m.waterfall = newWaterfall(m.subject,
		moments{begin, pulled, created, program.started, program.ready, at}, t.registry.Timeline())
	if t.y.snapshotter == node.Snapshotter {
		if err := t.addWaits(m.waterfall, begin); err != nil {
			return err
		}
	}
	return t.memory(&m.metrics)
}

// addWaits takes in the reads that waited.
func (t *trial) addWaits(w *waterfall, begin time.Time) error {
	log, err := os.Open(t.node.Log("micad"))
	if err != nil {
		return err
	}
	defer log.Close()
	w.Waits, err = readWaits(log, begin)
	return err
}

// cpu returns the CPU seconds of containerd and of micad.
func (t *trial) cpu() (used [2]float64, err error) {
	for i, pid := range t.pids {
		d, err := cpu(pid)
		if err != nil {
			return used, err
		}
		used[i] = d.Seconds()
	}
	return used, nil
}

// memory notes how much the daemons have had.
func (t *trial) memory(m *metrics) error {
	for i, to := range []*float64{&m.ContainerdPeak, &m.MicadPeak}[:len(t.pids)] {
		n, err := peak(t.pids[i])
		if err != nil {
			return err
		}
		*to = float64(n)
	}
	return nil
}

// keepLogs copies the node's logs to where they outlive it.
func (t *trial) keepLogs(runNo int) error {
	dir := filepath.Join(t.logs, fmt.Sprintf("%s-%s-%s-%d", t.w.name, t.net.name, t.y.name, runNo))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, d := range []string{"containerd", "micad"} {
		b, err := os.ReadFile(t.node.Log(d))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, d+".log"), b, 0o644))
	}
	return errors.Join(errs...)
}
