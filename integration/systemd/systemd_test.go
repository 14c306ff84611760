// Package systemd tests the unit file that is installed, script/micad.service, under systemd
// itself.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/keeper/keepertest"
)

const socket = "/run/micad/micad.sock"

// TestMain is the test, or as a unit's child the daemon of keepertest.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "live" {
		lives, err := strconv.Atoi(os.Args[3])
		if err == nil {
			err = keepertest.Live(context.Background(), os.Args[2], lives)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	for _, dir := range releases {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// each runs a test with every systemd.
func each(t *testing.T, test func(t *testing.T, root string)) {
	for name, root := range roots(t) {
		t.Run(name, func(t *testing.T) { test(t, root) })
	}
}

func TestUnitFileIsRight(t *testing.T) {
	each(t, func(t *testing.T, root string) {
		m := newMachine(t, root)
		m.boot()
		for line := range strings.Lines(m.run("systemd-analyze", "verify",
			"/usr/local/lib/systemd/system/micad.service")) {
			if m.version < preserves && strings.Contains(line, "FileDescriptorStorePreserve") {
				continue // it comes with that version, and older ones skip it
			}
			t.Errorf("systemd-analyze: %s", line)
		}
		for property, want := range map[string]string{
			"FragmentPath": "/usr/local/lib/systemd/system/micad.service", "NeedDaemonReload": "no",
			"Type": "notify", "Restart": "always", "FileDescriptorStoreMax": "4096", "KillMode": "process", "OOMScoreAdjust": "-999",
			"StatusText": "serves at " + socket,
		} {
			if got := m.show(property); got != want {
				t.Errorf("%s is %q, want %q", property, got, want)
			}
		}
		before := strings.Fields(m.show("Before"))
		for _, unit := range runtimes {
			if !slices.Contains(before, unit) {
				t.Errorf("it starts before %s, not %s", before, unit)
			}
		}
		// Mounts are made where containerd sees them.
		of := func(pid string) string {
			return strings.TrimSpace(m.run("readlink",
				"/proc/"+pid+"/ns/mnt"))
		}
		if micad, system := of(m.show("MainPID")), of("1"); micad != system {
			t.Errorf("micad's mount namespace is %s, the system's %s", micad, system)
		}
		m.run("systemctl", "enable", "micad.service")
		for _, unit := range append(runtimes, "multi-user.target") {
			wants := m.path("/etc/systemd/system/" + unit + ".wants")
			if _, err := os.Lstat(wants + "/micad.service"); err != nil {
				t.Errorf("enabled: %v", err)
			}
		}
	})
}

// runtimes are those who find a snapshotter at their start, or never.
var runtimes = []string{
	"containerd.service", "docker.service", "kubelet.service",
	"k3s.service", "k3s-agent.service", "rke2-server.service", "rke2-agent.service",
}

// TestStartsBeforeDocker: a Docker that is started while micad is not there starts it, and finds it
// ready.
func TestStartsBeforeDocker(t *testing.T) {
	each(t, func(t *testing.T, root string) {
		m := newMachine(t, root)
		m.write("etc/systemd/system/docker.service", "[Unit]\nDefaultDependencies=no\n[Service]\n"+
			"Type=oneshot\nExecStart=systemctl is-active micad.service\nStandardOutput=file:/mnt/found\n")
		m.boot()
		m.run("systemctl", "enable", "micad.service")
		m.run("systemctl", "stop", "micad.service")
		m.await("inactive")
		m.run("systemctl", "start", "docker.service")
		b, err := os.ReadFile(filepath.Join(m.work, "found"))
		if err != nil || strings.TrimSpace(string(b)) != "active" {
			m.fatal(fmt.Errorf("docker finds micad %q, %w", b, err))
		}
		m.answers(0)
	})
}

// Descriptors that are stored come back, over twenty deaths; the same suite runs under micad keep.
func TestKeeps(t *testing.T) {
	const lives = 21
	each(t, func(t *testing.T, root string) {
		binary, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t, root)
		m.write("daemon", string(binary))
		if err := os.Chmod(filepath.Join(m.work, "daemon"), 0o755); err != nil {
			t.Fatal(err)
		}
		m.boot("ExecStart=", fmt.Sprintf("ExecStart=/mnt/daemon live /mnt %d", lives))
		var lines []string
		m.eventually("the last life", func() error {
			b, _ := os.ReadFile(filepath.Join(m.work, keepertest.Report))
			if lines = strings.Split(strings.TrimSpace(string(b)), "\n"); len(lines) < lives {
				return fmt.Errorf("lives:\n%s", b)
			}
			return nil
		})
		for i, line := range lines {
			if n, rest, _ := strings.Cut(line, " "); n != strconv.Itoa(i) ||
				!strings.HasSuffix(rest, " ok") {
				m.fatal(fmt.Errorf("life %d: %s", i, line))
			}
		}
	})
}

// micad answers again after each of ten kills, an upgrade's restart, and a stop; meanwhile
// connections wait and none is refused.
func TestServes(t *testing.T) {
	each(t, func(t *testing.T, root string) {
		m := newMachine(t, root)
		m.boot()
		refused := m.connect()
		var longest time.Duration
		for range 10 {
			old := m.number("MainPID")
			m.run("systemctl", "kill", "--signal=KILL", "micad.service")
			longest = max(longest, m.answers(old))
			if n := m.number("NFileDescriptorStore"); n == 0 {
				m.fatal(errors.New("no descriptor is kept"))
			}
		}
		t.Logf("longest time to an answer after a kill: %v", longest)
		if longest > 5*time.Second { // 0.2 s on an idle machine: no back-off, no limit of starts
			t.Errorf("an answer takes %v after a kill", longest)
		}
		if n := m.number("NRestarts"); n != 10 {
			t.Errorf("%d restarts, want 10", n)
		}
		old := m.number("MainPID")
		m.run("systemctl", "restart", "micad.service")
		t.Logf("time to an answer after a restart: %v", m.answers(old))
		if err := refused(); err != nil {
			m.fatal(fmt.Errorf("a connection is refused: %w", err))
		}

		old = m.number("MainPID")
		m.run("systemctl", "stop", "micad.service")
		m.await("inactive")
		kept := m.number("NFileDescriptorStore")
		if preserved := m.version >= preserves; (kept > 0) != preserved {
			t.Errorf("%d descriptors are kept while micad is stopped by systemd %d", kept,
				m.version)
		}
		m.run("systemctl", "start", "micad.service")
		m.answers(old)
	})
}

// answers waits until a micad that is not old answers, and returns how long that took.
func (m *machine) answers(old int) time.Duration {
	m.t.Helper()
	began := time.Now()
	m.eventually("micad", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var info admin.Info
		if err := admin.NewClient(m.path(socket)).Get(ctx, admin.PathInfo, &info); err != nil {
			return err
		}
		if pid := m.number("MainPID"); pid == old {
			return fmt.Errorf("it is still process %d", pid)
		}
		return nil
	})
	return time.Since(began)
}

// connect goes on connecting to micad until the function is called that it returns, which tells the
// first refusal.
func (m *machine) connect() func() error {
	stop, result := make(chan struct{}), make(chan error)
	go func() {
		for {
			c, err := net.DialTimeout("unix", m.path(socket), 10*time.Second)
			if err == nil {
				err = c.Close()
			}
			if err != nil {
				<-stop
				result <- err
				return
			}
			select {
			case <-stop:
				result <- nil
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() error { close(stop); return <-result }
}
