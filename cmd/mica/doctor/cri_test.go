package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// TestLocalPull: CRI pulls by itself for what containerd's own check looks for, in both versions of
// the configuration.
func TestLocalPull(t *testing.T) {
	const (
		images = "[plugins.'io.containerd.cri.v1.images']\n"
		mirror = "[plugins.'io.containerd.cri.v1.images'.registry.mirrors.x]\n"
		hosts  = "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/x'\n"
		cri    = "[plugins.'io.containerd.grpc.v1.cri']\nmax_concurrent_downloads = 9\n"
		half   = "[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndiscard_unpacked_layers = true\n"

		discard, annotate = "discard_unpacked_layers = true", "disable_snapshot_annotations = false"
	)
	for name, tc := range map[string]struct {
		version      int
		config, want string
	}{
		"defaults":     {3, images + "max_concurrent_downloads = 3\n", ""},
		"nothing":      {3, "", ""},
		"kind":         {3, images + discard, discard},
		"downloads":    {3, images + "max_concurrent_downloads = 10\n", "max_concurrent_downloads"},
		"annotations":  {3, images + annotate, annotate},
		"no more":      {3, images + "disable_snapshot_annotations = true\n", ""},
		"mirrors":      {3, mirror, "registry.mirrors"},
		"config_path":  {3, hosts, ""},
		"2: in a half": {2, cri, "max_concurrent_downloads"},
		"2: the other": {2, half, discard},
		"4":            {4, cri + half, ""},
	} {
		c, err := loadContainerd(written(t, fmt.Sprintf("version = %d\n%s", tc.version, tc.config)))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.images().local(); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestPulls: containerd and micad have to reach the same registries, and one of them has to know
// which image a layer is of.
func TestPulls(t *testing.T) {
	const images = "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'mica'\n"
	registry := "[plugins.'io.containerd.cri.v1.images'.registry]\n"
	dir, other := t.TempDir(), t.TempDir()
	for name, tc := range map[string]struct {
		config, check, status string
		info                  admin.Info
	}{
		"same": {images + registry + "config_path = '" + dir + "'\n", "hosts", "",
			admin.Info{HostsDir: dir}},
		"other": {images + registry + "config_path = '" + other + "'\n", "hosts", "warning",
			admin.Info{HostsDir: dir}},
		"one of two": {images + registry + "config_path = '" + other + ":" + dir + "'\n", "hosts",
			"warning", admin.Info{HostsDir: dir}},
		"for a folder": {images + registry + "config_path = '" + other + ":" + dir + "'\n", "hosts",
			"warning", admin.Info{HostsDir: dir + ":" + other}},
		"both": {images + "discard_unpacked_layers = true\n" + registry + "config_path = '" + other +
			":" + dir + "'\n", "hosts", "", admin.Info{HostsDir: dir + ":" + other,
			AsksContainerd: true}},
		"transfer": {"version = 3\n[plugins.'io.containerd.transfer.v1.local']\nconfig_path = '" + other +
			"'\n", "hosts", "warning", admin.Info{HostsDir: dir}},
		"mirrors": {images + "[plugins.'io.containerd.cri.v1.images'.registry.mirrors.x]\n", "hosts",
			"warning", admin.Info{HostsDir: conf.CRIHosts}},
		"nobody says": {images + "discard_unpacked_layers = true\n", "annotations", "error",
			admin.Info{HostsDir: conf.CRIHosts}},
		"micad asks": {images + "discard_unpacked_layers = true\n", "annotations", "",
			admin.Info{HostsDir: conf.CRIHosts, AsksContainerd: true}},
	} {
		var f Findings
		f.pulls(written(t, tc.config), tc.info)
		if tc.status == "" && len(f) > 0 || tc.status != "" && !f.has(tc.check, tc.status) {
			t.Errorf("%s: %+v, want %s of %s", name, f, tc.status, tc.check)
		}
	}
}

// written returns the path of a file with a configuration.
func written(t *testing.T, config string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
