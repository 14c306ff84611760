package setup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

const daemonJSON = "/etc/docker/daemon.json"

// dockerUnits are where dockerd's flags stand: it does not start where a flag and daemon.json both
// say the same thing.
var dockerUnits = []string{
	"/usr/lib/systemd/system/docker.service", "/lib/systemd/system/docker.service",
	"/etc/systemd/system/docker.service", "/etc/systemd/system/docker.service.d/*.conf",
}

// docker plans dockerd's configuration: the machine's containerd, and mica as its storage driver.
func (p *plan) docker() error {
	var flags string
	for _, pattern := range dockerUnits {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, path := range found {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			flags += string(b)
		}
	}
	if strings.Contains(flags, "--storage-driver") {
		return errors.New("docker.service gives dockerd --storage-driver: take the flag out " +
			"(systemctl edit docker.service)")
	}
	driver := "mica"
	if p.BuildKit { // Docker builds with the driver that it runs containers with
		driver = conf.Alias
	}
	want := map[string]any{
		"storage-driver": driver,
		"features":       map[string]any{"containerd-snapshotter": true},
	}
	if !strings.Contains(flags, "--containerd") {
		want["containerd"] = "/run/containerd/containerd.sock"
	}
	b, err := p.read(daemonJSON)
	if err != nil {
		return err
	}
	if p.files[daemonJSON], err = addJSON(b, want); err != nil {
		return fmt.Errorf("parse %s: %w", daemonJSON, err)
	}
	return nil
}

// setMicad plans a line of micad's configuration. A value that stands there stays; where it is
// another one the user is told.
func (p *plan) setMicad(in, key, value string) error {
	b, err := p.read(p.Micad)
	if err != nil {
		return err
	}
	after, have, err := addKey(b, in, key, value)
	if err != nil {
		return fmt.Errorf("%s: %w", p.Micad, err)
	}
	switch name := strings.TrimPrefix(in+"."+key, "."); {
	case (key == "content_store" || in == "buildkit") && have != value:
		return fmt.Errorf("%s in %s is %q, and has to be %q: change it", name, p.Micad, have, value)
	case have != value:
		p.notes = append(p.notes, fmt.Sprintf("%s in %s is %v, containerd's configuration has %s",
			name, p.Micad, have, value))
	}
	p.files[p.Micad] = after
	return nil
}
