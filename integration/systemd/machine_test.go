package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/node"
)

// preserves is the first version of systemd that keeps descriptors of a stopped unit, and tells
// that it keeps any.
const preserves = 254

// machine is a system that runs systemd and what `make install` installs.
type machine struct {
	t       *testing.T
	root    string // where its systemd is
	version int
	work    string // its /mnt
	init    int    // its first process
	program string // in place of systemd, when not ""
	shared  bool   // its network is this machine's, with the registries of tests
}

// roots are the systems to test with: this one, and one whose systemd is newer if this one's is
// old.
func roots(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"installed": "/"}
	if version(t, "/") >= preserves {
		return all
	}
	checkout, err := node.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	suite := map[string]string{"debian": "trixie", "ubuntu": "noble"}[distribution(t)]
	if suite == "" {
		t.Fatalf("systemd is older than %d, and it is not known where a newer one is", preserves)
	}
	dir := filepath.Join(checkout, "build", "systemd-"+suite)
	if _, err := os.Stat(dir); err != nil {
		made, err := os.MkdirTemp(filepath.Dir(dir), "systemd-*.tmp")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(made)
		run(t, "mmdebstrap", "--quiet", "--variant=extract", "--include=systemd,mount,coreutils",
			suite, made)
		if err := os.Chmod(made, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
			if err := os.Symlink("usr/"+name, filepath.Join(made, name)); err != nil &&
				!errors.Is(err, fs.ErrExist) {
				t.Fatal(err)
			}
		}
		if err := os.Rename(made, dir); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
	all[suite] = dir
	return all
}

func distribution(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(run(t, "sh", "-c", ". /etc/os-release && echo $ID"))
}

// version is that of the systemd in root.
func version(t *testing.T, root string) int {
	t.Helper()
	var v int
	if _, err := fmt.Sscanf(run(t, "chroot", root, "systemctl", "--version"), "systemd %d",
		&v); err != nil {
		t.Fatalf("systemd's version: %v", err)
	}
	return v
}

// newMachine makes a machine that is switched off.
func newMachine(t *testing.T, root string) *machine {
	t.Helper()
	return &machine{t: t, root: root, version: version(t, root), work: t.TempDir()}
}

// boot starts the machine with lines added to micad's unit, and waits until the unit is active.
func (m *machine) boot(unit ...string) {
	m.t.Helper()
	m.prepare(unit...)
	m.start(makeInstall(m.t))
	m.await("active")
}

// makeInstall is what `make install` installs, in a folder.
func makeInstall(t *testing.T) string {
	t.Helper()
	checkout, err := node.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	installed := t.TempDir()
	run(t, "make", "-C", checkout, "--old-file=build", "install", "DESTDIR="+installed)
	return installed
}

// prepare writes what the machine has beside its programs, and lines added to micad's unit.
func (m *machine) prepare(unit ...string) {
	m.t.Helper()
	// The start of a whole system is left out: it would look after this one's devices.
	unit = append([]string{"[Unit]", "DefaultDependencies=no", "[Service]",
		"StandardError=append:/mnt/log"}, unit...)
	m.write("etc/systemd/system/micad.service.d/test.conf", strings.Join(unit, "\n")+"\n")
	// What multi-user.target is for a unit that is enabled. systemd forgets a stopped unit that no
	// other one wants, with its descriptors.
	m.write("etc/systemd/system/test.target",
		"[Unit]\nDefaultDependencies=no\nWants=micad.service\n")
	m.write("etc/machine-id", strings.Repeat("a", 32)+"\n")
	m.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	m.write("etc/group", "root:x:0:\n")
	m.write("lib/micad/.keep", "")
}

// write makes a file below work.
func (m *machine) write(name, content string) {
	m.t.Helper()
	path := filepath.Join(m.work, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// start boots, in a cgroup of its own, which it manages.
func (m *machine) start(installed string) {
	m.t.Helper()
	cgroup := newCgroup(m.t)
	script, err := filepath.Abs("boot.sh")
	if err != nil {
		m.t.Fatal(err)
	}
	console, err := os.Create(filepath.Join(m.work, "console"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer console.Close()
	enter := `echo $$ >"$1/cgroup.procs" && shift && exec unshare --pid --fork --kill-child --mount --cgroup --ipc --uts --mount-proc "$@"`
	args := []string{"-c", enter, "boot", cgroup, "--net", script, m.root, installed, m.work}
	if m.shared {
		args = slices.Delete(args, 4, 5)
	}
	cmd := exec.Command("bash", append(args, strings.Fields(m.program)...)...)
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill() // its child dies with it, and all that this has started
		_ = cmd.Wait()
		removeCgroup(m.t, cgroup)
	})
	children := fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)
	m.eventually("the first process", func() error {
		b, err := os.ReadFile(children)
		if err == nil {
			m.init, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err
	})
}

// newCgroup makes a cgroup on a mount of its own: where cgroups are mounted differs.
func newCgroup(t *testing.T) string {
	t.Helper()
	mount := t.TempDir()
	run(t, "mount", "-t", "cgroup2", "cgroup2", mount)
	t.Cleanup(func() { run(t, "umount", mount) })
	dir, err := os.MkdirTemp(mount, "mica-systemd-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// removeCgroup removes a cgroup and those below it once their processes are gone.
func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	var last error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var dirs []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		last = nil
		for i := len(dirs) - 1; i >= 0; i-- {
			last = errors.Join(last, syscall.Rmdir(dirs[i]))
		}
		if last == nil {
			return
		}
	}
	t.Errorf("cgroup %s is left: %v", dir, last)
}

// tryRun runs a command on the machine.
func (m *machine) tryRun(args ...string) (string, error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	enter := []string{"-t", strconv.Itoa(m.init), "-m", "-p", "-n", "-i", "-u", "-C", "-r", "-w",
		"--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(args, " "), err, out, &stderr)
	}
	return string(out) + stderr.String(), nil
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.tryRun(args...)
	if err != nil {
		m.fatal(err)
	}
	return out
}

// show is a property of micad's unit.
func (m *machine) show(property string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", "--value", "--property="+property,
		"micad.service"))
}

func (m *machine) number(property string) int {
	m.t.Helper()
	n, err := strconv.Atoi(m.show(property))
	if err != nil {
		m.fatal(fmt.Errorf("%s: %w", property, err))
	}
	return n
}

// await waits until the unit is in a state.
func (m *machine) await(state string) {
	m.t.Helper()
	m.eventually("unit "+state, func() error {
		// at first systemd itself does not answer
		got, err := m.tryRun("systemctl", "show", "--value", "--property=ActiveState",
			"micad.service")
		if err == nil && strings.TrimSpace(got) != state {
			err = fmt.Errorf("it is %s", got)
		}
		return err
	})
}

func (m *machine) eventually(what string, try func() error) {
	m.t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	m.fatal(fmt.Errorf("%s: %w", what, err))
}

// fatal ends the test with all that was logged.
func (m *machine) fatal(err error) {
	m.t.Helper()
	console, _ := os.ReadFile(filepath.Join(m.work, "console"))
	log, _ := os.ReadFile(filepath.Join(m.work, "log"))
	more, _ := os.ReadFile(filepath.Join(m.work, "containerd.log"))
	m.t.Fatalf("%v\nconsole:\n%s\nmicad:\n%s\ncontainerd:\n%s", err, console, log,
		more[max(0, len(more)-3000):])
}

// path is a file of the machine, seen from here.
func (m *machine) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", m.init, name) }

// run runs a command here.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}
