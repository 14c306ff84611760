package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestPackage: the deb is installed, upgraded, downgraded and removed under systemd, while a lazy
// container reads: no read of it fails. While there is a micad at all no connection to it is
// refused, and what it is told by its configuration stays.
func TestPackage(t *testing.T) {
	older, newer := release(t, "v0.1.0", ".deb"), release(t, "v0.2.0", ".deb")
	m := newMachine(t, "/")
	m.write("older.deb", older)
	m.write("newer.deb", newer)
	for _, name := range []string{"status", "available", "triggers/Unincorp", "info/format",
		"updates/.keep"} {
		content := ""
		if name == "info/format" {
			content = "1\n"
		}
		m.write("lib/dpkg/"+name, content)
	}
	ref := served(t)
	m.prepare()
	m.start(m.withContainerd(ref))
	m.eventually("systemd", func() error {
		_, err := m.tryRun("systemctl", "list-units")
		return err
	})
	// What packages bring is on no disk of the machine that tests.
	m.write("upper/.keep", "")
	m.write("over/.keep", "")
	m.write("local/.keep", "")
	m.run("mount", "--bind", "/usr/local", "/mnt/local")
	m.run("mount", "-t", "overlay", "-o", "lowerdir=/usr,upperdir=/mnt/upper,workdir=/mnt/over",
		"overlay", "/usr")
	m.run("mount", "--bind", "/mnt/local", "/usr/local")

	m.install("older.deb")
	m.await("active")
	m.answers(0)
	m.versionIs("0.1.0")
	if got := m.show("UnitFileState"); got != "enabled" {
		t.Errorf("the unit is %s", got)
	}
	m.run("mica", "--version")
	m.run("micad", "config", "check")
	refused := m.connect()
	config := m.path("/etc/micad/config.toml")
	changed := strings.Replace(m.read(config), "# log_level = 'INFO'", "log_level = 'DEBUG'", 1)
	if changed == m.read(config) {
		t.Error("the package's configuration does not show the log's level")
	}
	changed = strings.Replace(changed, "[fetch]\n", fetchOnDemand, 1)
	if err := os.WriteFile(config, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	m.run("systemctl", "restart", "micad")
	m.run("mica", "setup", "containerd", "--yes")
	m.run("systemctl", "restart", "containerd")
	reader := m.reads(ref, "reader")
	for _, step := range []struct{ deb, version string }{
		{"newer.deb", "0.2.0"}, {"older.deb", "0.1.0"}, {"newer.deb", "0.2.0"},
	} {
		old := m.number("MainPID")
		m.install(step.deb)
		m.answers(old)
		m.versionIs(step.version)
		reader.goesOn()
	}
	if got := m.read(config); got != changed {
		t.Errorf("the configuration has become\n%s", got)
	}
	if err := refused(); err != nil {
		m.fatal(fmt.Errorf("a connection is refused: %w", err))
	}
	// Without its package micad goes on for the container, and hands over to the next one.
	old := m.number("MainPID")
	m.run("dpkg", "--purge", "mica")
	reader.goesOn()
	m.write("etc/micad/config.toml", changed)
	m.install("older.deb")
	m.answers(old)
	m.versionIs("0.1.0")
	reader.goesOn()
	reader.ends()
	m.run("ctr", "images", "rm", "--sync", ref)
	m.eventually("the end of the mounts", func() error {
		// The machine has copies of what other tests had mounted when it began.
		if b := m.run("cat", "/proc/self/mountinfo"); strings.Contains(b, " /var/lib/micad/") {
			return errors.New(b)
		}
		return nil
	})
	m.run("mica", "setup", "containerd", "--undo", "--yes")
	m.run("systemctl", "restart", "containerd")
	m.run("dpkg", "--remove", "mica")
	if got := m.show("ActiveState"); got != "inactive" {
		t.Errorf("after the removal the unit is %s", got)
	}
	if _, err := os.Stat(config); err != nil {
		t.Errorf("a removal takes the configuration: %v", err)
	}
	m.run("dpkg", "--purge", "mica")
	for _, gone := range []string{"/usr/bin/micad", "/usr/bin/mica", "/etc/micad",
		"/var/lib/micad", "/usr/lib/systemd/system/micad.service"} {
		if _, err := os.Lstat(m.path(gone)); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
}

// releases are the folders of the versions that were made, which takes half a minute each.
var releases = map[string]string{}

// release returns the bytes of a file of a version's release for this machine, the one that ends in
// suffix.
func release(t *testing.T, version, suffix string) string {
	t.Helper()
	if releases[version] == "" {
		checkout, err := node.Checkout()
		var dir string
		if err == nil {
			dir, err = os.MkdirTemp("", "release")
		}
		if err != nil {
			t.Fatal(err)
		}
		releases[version] = dir
		arch := strings.TrimSpace(run(t, "go", "env", "GOARCH"))
		run(t, "env", "ARCHES="+arch, "FORMATS=deb image", checkout+"/script/release/make.sh",
			version, dir)
	}
	found, err := filepath.Glob(releases[version] + "/mica*" + suffix)
	if err != nil || len(found) != 1 {
		t.Fatalf("files %v, %v", found, err)
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// install has dpkg install a package. The machine has none of those that every system has.
func (m *machine) install(deb string) {
	m.t.Helper()
	m.run("dpkg", "--force-depends", "--force-downgrade", "--force-confold", "-i", "/mnt/"+deb)
}

func (m *machine) versionIs(want string) {
	m.t.Helper()
	var info admin.Info
	err := admin.NewClient(m.path(socket)).Get(context.Background(), admin.PathInfo, &info)
	if err != nil || info.Version != want {
		m.fatal(fmt.Errorf("micad is version %q, %w", info.Version, err))
	}
}

func (m *machine) read(path string) string {
	m.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		m.fatal(err)
	}
	return string(b)
}
