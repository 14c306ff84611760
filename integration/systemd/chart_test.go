package systemd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// TestChart does on a node what the pods of the Helm chart do, from the release's container image:
// it installs Mica, upgrades it, and takes it away, while a lazy container reads. Pods come and go;
// no read fails, and a pod that has nothing to do restarts nothing.
func TestChart(t *testing.T) {
	images := map[string]string{}
	for _, version := range []string{"0.1.0", "0.2.0"} {
		images[version] = release(t, "v"+version, "-image.tar")
	}
	ref := served(t)
	for _, init := range []string{"systemd", "none"} {
		t.Run(init, func(t *testing.T) {
			m := newMachine(t, "/")
			for version, image := range images {
				m.write(version+".tar", image)
			}
			m.write("config/config.toml", fetchOnDemand)
			m.prepare()
			installed := m.withContainerd(ref)
			if init == "none" {
				m.program = "/bin/sleep infinity"
			}
			m.start(installed)
			m.startContainerd()
			for version := range images {
				m.run("ctr", "images", "import", "--snapshotter", "overlayfs",
					"/mnt/"+version+".tar")
			}

			m.pod("install", "0.1.0", "Mica is installed.")
			m.versionIs("0.1.0")
			reader := m.reads(ref, "reader")
			started, runtime := m.started()
			m.pod("install", "0.1.0", "Mica is installed.") // a pod that was deleted, say
			if again, now := m.started(); again != started || now != runtime {
				t.Errorf("a pod with nothing to do has restarted micad (%v, %v) or containerd (%d, %d)",
					started, again, runtime, now)
			}
			m.pod("install", "0.2.0", "Mica is installed.")
			m.versionIs("0.2.0")
			reader.goesOn()
			if _, now := m.started(); now != runtime {
				t.Error("an upgrade has restarted containerd")
			}

			wait := m.pod("remove", "0.2.0", "waiting for the end of containers that Mica serves: "+
				"default/reader\n")
			reader.goesOn()
			m.versionIs("0.2.0")
			if out, err := m.tryRun("ctr", "run", noShares, "--snapshotter", "mica", ref, "late",
				"/probe"); err == nil {
				t.Errorf("mica still starts containers: %s", out)
			}
			reader.ends() // containerd deletes it without mica
			wait("Mica is removed.")
			m.removed()
		})
	}
}

// startContainerd starts it as the machine does.
func (m *machine) startContainerd() {
	m.t.Helper()
	if m.program == "" {
		m.eventually("systemd", func() error {
			_, err := m.tryRun("systemctl", "start", "containerd")
			return err
		})
		return
	}
	m.eventually("init", func() error {
		if name, err := m.tryRun("cat", "/proc/1/comm"); err != nil || name != "sleep\n" {
			return fmt.Errorf("the first process is %q, %w", name, err)
		}
		return nil
	})
	m.run("sh", "-c", "setsid /usr/local/bin/containerd </dev/null >>/mnt/containerd.log 2>&1 &")
	m.eventually("containerd", func() error { _, err := m.tryRun("ctr", "version"); return err })
}

// containerdPID is containerd's process, seen from here.
func (m *machine) containerdPID() int {
	m.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(m.run("pidof", "containerd")))
	if err != nil {
		m.fatal(err)
	}
	return pid
}

// started tells which micad and which containerd run.
func (m *machine) started() (micad time.Time, containerd int) {
	m.t.Helper()
	var info admin.Info
	if err := admin.NewClient(m.path(socket)).Get(context.Background(), admin.PathInfo,
		&info); err != nil {
		m.fatal(err)
	}
	return info.Started, m.containerdPID()
}

// pod runs what a pod of the chart runs, in a container as Kubernetes makes it, until its standard
// output has a line. What it returns waits for another, and for the end. Where nobody else restarts
// containerd, it does that when the log asks for it. The log can lack the last lines of standard
// error, because the shim (containerd 2.4) closes the file when standard output ends.
func (m *machine) pod(do, version, line string) (wait func(line string)) {
	m.t.Helper()
	id := fmt.Sprintf("%s-%d", do, time.Now().UnixNano())
	image := "ghcr.io/mica-snapshotter/mica:" + version
	m.run("ctr", "run", "-d", noShares, "--privileged", "--with-ns", "pid:/proc/1/ns/pid",
		"--snapshotter", "overlayfs", "--log-uri", "file:///mnt/"+id,
		"--mount", "type=bind,src=/mnt/config,dst=/etc/mica,options=rbind:ro", image, id,
		"/usr/bin/mica", "node", do, "containerd")
	asked := false
	wait = func(line string) {
		m.t.Helper()
		m.eventually("the pod", func() error {
			b, err := os.ReadFile(filepath.Join(m.work, id))
			if strings.Contains(string(b), "Restart containerd on this node") && !asked {
				asked = true
				m.kill("containerd")
				m.startContainerd()
			}
			if err == nil && !strings.Contains(string(b), line) {
				err = fmt.Errorf("%s has said %q", id, b)
			}
			return err
		})
	}
	wait(line)
	if strings.HasPrefix(line, "Mica is ") { // the end of its work
		m.eventually("the pod's end", func() error {
			_, err := m.tryRun("ctr", "tasks", "delete", id)
			return err
		})
		m.run("ctr", "containers", "delete", id)
	}
	return wait
}

// kill ends the process of a name.
func (m *machine) kill(name string) {
	m.t.Helper()
	m.run("kill", strings.TrimSpace(m.run("pidof", name)))
	m.eventually("the end of "+name, func() error {
		_, err := m.tryRun("sh", "-c", "! pidof "+name)
		return err
	})
}

// removed fails the test where something of Mica is left but its root's metadata.
func (m *machine) removed() {
	m.t.Helper()
	for _, path := range []string{"/usr/local/bin/micad", "/usr/local/bin/mica",
		"/etc/systemd/system/micad.service", "/etc/containerd/config.toml",
		"/etc/containerd/conf.d/mica.toml", "/etc/micad/config.toml"} {
		if _, err := os.Lstat(m.path(path)); err == nil {
			m.t.Errorf("%s is left", path)
		}
	}
	if out, err := m.tryRun("pidof", "micad"); err == nil {
		m.t.Errorf("micad runs: %s", out)
	}
	if b := m.run("cat", "/proc/self/mountinfo"); strings.Contains(b, " /var/lib/micad/") {
		m.t.Errorf("mounts are left:\n%s", b)
	}
}
