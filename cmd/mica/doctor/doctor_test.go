package doctor

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// goodConfig is for this machine.
var goodConfig = strings.ReplaceAll(`version = 3
[proxy_plugins.mica]
type = "snapshot"
address = "/run/micad/micad.sock"
[proxy_plugins.mica.exports]
root = "/var/lib/micad"
enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "mica"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "mica"
`, "linux/amd64", "linux/"+runtime.GOARCH)

// TestFollowed: what the doctor says is all that there is to be done.
func TestFollowed(t *testing.T) {
	config := "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'mica'\n"
	for _, fix := range []string{PluginFix(admin.DefaultAddress), unpackFix} {
		_, text, _ := strings.Cut(fix, "\n")
		config += strings.TrimSuffix(text, restartHint) + "\n"
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var f Findings
	checkContainerd(&f, path, admin.DefaultAddress)
	f.remapIDs(path, admin.Info{RemapIDs: true})
	for _, x := range f {
		if x.Status != "ok" {
			t.Errorf("%s: %s: %s", x.Check, x.Status, x.Detail)
		}
	}
}

func TestCheckContainerd(t *testing.T) {
	replace := func(old, with string) string {
		if !strings.Contains(goodConfig, old) {
			t.Fatalf("%q is not in the good configuration", old)
		}
		return strings.Replace(goodConfig, old, with, 1)
	}
	for name, tc := range map[string]struct {
		config string
		want   map[string]string // check → status that must be among its findings
	}{
		"good": {goodConfig,
			map[string]string{"plugin": "ok", "annotations": "ok", "unpack": "ok", "cri": "ok"}},
		"empty": {"version = 3",
			map[string]string{"plugin": "error", "unpack": "error", "cri": "warning"}},
		"other socket": {replace("/run/micad/micad.sock", "/run/other.sock"),
			map[string]string{"plugin": "error"}},
		"no annotations": {replace(`enable_remote_snapshot_annotations = "true"`, ""),
			map[string]string{"annotations": "warning"}},
		"no root export": {replace(`root = "/var/lib/micad"`, ""),
			map[string]string{"exports": "warning"}},
		"overlayfs lost": {replace(`snapshotter = "overlayfs"`, `snapshotter = "native"`),
			map[string]string{"unpack": "warning"}},
		"not for mica": {replace(`snapshotter = "mica"`, `snapshotter = "stargz"`),
			map[string]string{"unpack": "error"}},
		"other platform": {strings.ReplaceAll(goodConfig, "linux/"+runtime.GOARCH, "linux/riscv64"),
			map[string]string{"unpack": "error"}},
		"any linux": {strings.ReplaceAll(goodConfig, "linux/"+runtime.GOARCH, "linux"),
			map[string]string{"unpack": "ok"}},
		"local pull": {goodConfig + "use_local_image_pull = true\n",
			map[string]string{"cri": "ok"}},
		"not TOML": {"[[[", map[string]string{"containerd": "error"}},
		"wrong types": {"proxy_plugins = 3\nplugins = []\nimports = [4]",
			map[string]string{"containerd": "error"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(tc.config), 0o600); err != nil {
				t.Fatal(err)
			}
			var f Findings
			checkContainerd(&f, path, "/run/micad/micad.sock")
			for check, status := range tc.want {
				if !f.has(check, status) {
					t.Errorf("no %s of status %s in %v", check, status, f)
				}
			}
			if name == "good" && (f.has("plugin", "error") || f.has("cri", "warning")) {
				t.Errorf("a good configuration is blamed: %v", f)
			}
		})
	}
}

// TestExportedRoot: the kubelet has to watch the file system that micad's root is on.
func TestExportedRoot(t *testing.T) {
	root := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	for told, want := range map[string]bool{root: true, root + "/": true, link: true,
		root + "/other": false} {
		path := filepath.Join(t.TempDir(), "config.toml")
		text := "version = 3\n[proxy_plugins.mica.exports]\nroot = \"" + told + "\"\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var f Findings
		f.exports(path, root)
		if (len(f) == 0) != want {
			t.Errorf("%s for %s: %+v", told, root, f)
		}
	}
}

// TestFixIsRight: what doctor says to add is what it wants.
func TestFixIsRight(t *testing.T) {
	_, text, _ := strings.Cut(unpackFix, "\n")
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte("version = 3\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	var f Findings
	checkContainerd(&f, path, "/run/micad/micad.sock")
	if !f.has("unpack", "ok") {
		t.Errorf("%+v", f)
	}
}

func (f Findings) has(check, status string) bool {
	for _, x := range f {
		if x.Check == check && x.Status == status {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("config.toml",
		"imports = ['conf.d/*.toml', 'config.toml']\n[proxy_plugins.mica]\ntype = 'content'\n")
	if err := os.Mkdir(filepath.Join(dir, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("conf.d/mica.toml", "[proxy_plugins.mica]\ntype = 'snapshot'\n")
	c, err := loadContainerd(filepath.Join(dir, "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.at("proxy_plugins", "mica", "type"); got != "snapshot" {
		t.Errorf("type is %v: the imported file does not count", got)
	}
}
