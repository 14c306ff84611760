package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/mica-snapshotter/mica/cmd/mica/setup"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// packaged are the units of a Mica that something else has installed.
var packaged = []string{"/usr/lib/systemd/system/micad.service",
	"/lib/systemd/system/micad.service", "/usr/local/lib/systemd/system/micad.service"}

// foreign is an error where the node's Mica is none of the chart's.
func foreign() error {
	for _, path := range packaged {
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("%s: a package has installed Mica on this node. Remove the package, "+
				"or leave the node out (nodeSelector)", path)
		}
	}
	return nil
}

// Install makes the host's Mica that of the pod's image. A micad that runs hands its mounts over to
// the next one; containers read on.
func Install(ctx context.Context, o Options) error {
	if err := foreign(); err != nil {
		return err
	}
	for _, name := range []string{"mica", "micad"} {
		b, err := podFile("/usr/bin/" + name)
		if err == nil {
			err = replace(filepath.Join(o.Bin, name), b, 0o755)
		}
		if err != nil {
			return fmt.Errorf("install %s: %w", name, err)
		}
	}
	if err := o.unit(); err != nil {
		return fmt.Errorf("install micad's unit: %w", err)
	}
	if err := o.daemonConfig(); err != nil {
		return fmt.Errorf("configure micad: %w", err)
	}
	changed, err := o.configure(ctx, setup.Run)
	if err != nil {
		return err
	}
	if err := o.start(ctx); err != nil {
		return err
	}
	if err := o.runtime(ctx, changed, true); err != nil {
		return err
	}
	o.say("Mica is installed.")
	return nil
}

// replace gives a file another content. One that has it already stays, with its time.
func replace(path string, content []byte, mode os.FileMode) error {
	b, err := os.ReadFile(path)
	if err == nil && bytes.Equal(b, content) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.ReplaceBytes(path, mode, content)
}

// unit writes micad's unit, for the folder that its program is in.
func (o *Options) unit() error {
	if !systemd() {
		return nil
	}
	b, err := podFile("/usr/lib/systemd/system/micad.service")
	if err != nil {
		return err
	}
	own := strings.ReplaceAll(string(b), "/usr/bin/micad", filepath.Join(o.Bin, "micad"))
	return replace(unit, []byte(own), 0o644)
}

// daemonConfig writes micad's configuration, where the chart has one.
func (o *Options) daemonConfig() error {
	want, err := podFile("/etc/mica/config.toml")
	if errors.Is(err, fs.ErrNotExist) || err == nil && o.configured(want) {
		return nil
	}
	if err != nil {
		return err
	}
	return replace(o.Micad, want, 0o644)
}

// configured says whether micad's configuration is the chart's. Lines of mica setup's are no
// difference.
func (o *Options) configured(want []byte) bool {
	have, err := os.ReadFile(o.Micad)
	return err == nil && bytes.Equal(bytes.TrimSpace(setup.Without(have)), bytes.TrimSpace(want))
}

// start has a micad run that is made of the files that are there.
func (o *Options) start(ctx context.Context) error {
	info, err := o.info(ctx)
	runs, old := err == nil, false
	for _, path := range []string{filepath.Join(o.Bin, "micad"), unit, o.Micad} {
		if st, err := os.Stat(path); err == nil && st.ModTime().After(info.Started) {
			old = runs
		}
	}
	switch {
	case systemd():
		verb := "start"
		if old {
			verb = "restart"
		}
		for _, args := range [][]string{{"daemon-reload"}, {"enable", "--quiet", "micad.service"},
			{verb, "micad.service"}} {
			if _, err := run(ctx, "systemctl", args...); err != nil {
				return fmt.Errorf("%w; see journalctl -u micad", err)
			}
		}
	case !runs:
		if err := o.keep(); err != nil {
			return fmt.Errorf("start micad keep: %w; it needs cgroup v2 at /sys/fs/cgroup, or "+
				"systemd", err)
		}
	case old:
		pid := keeper(info.PID)
		if pid == 0 {
			return fmt.Errorf("micad (process %d) runs without micad keep: end it with its "+
				"containers, then this pod starts another", info.PID)
		}
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			return err
		}
	}
	return until(ctx, func() bool {
		now, err := o.info(ctx)
		return err == nil && (!old || now.PID != info.PID)
	})
}

// keepLog is what micad says where there is no journal.
const keepLog = "/var/log/micad.log"

// keep starts micad keep as a process of the host's alone: with a session and a cgroup of its own,
// because what is in the pod's ends with the pod.
func (o *Options) keep() error {
	cgroup := "/sys/fs/cgroup/micad"
	if err := os.Mkdir(cgroup, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	log, err := os.OpenFile(keepLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	program := filepath.Join(o.Bin, "micad")
	p, err := os.StartProcess(program, []string{program, "keep"}, &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + hostPath}, Files: []*os.File{null, log, log},
		Sys: &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}})
	if err != nil {
		return err
	}
	score := fmt.Sprintf("/proc/%d/oom_score_adj", p.Pid)
	if err := os.WriteFile(score, []byte("-999"), 0o644); err != nil {
		o.say("where memory is short, micad keep may be killed, as any process: %v", err)
	}
	return p.Release()
}
