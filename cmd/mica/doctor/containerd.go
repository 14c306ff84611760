package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"

	"github.com/containerd/platforms"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// containerdConfig is a containerd configuration with its imports merged in.
type containerdConfig conf.Table

// loadContainerd reads the file at path and what it imports.
func loadContainerd(path string) (containerdConfig, error) {
	c, err := conf.Load(path, nil)
	return c, err
}

func (c containerdConfig) at(keys ...string) any { return conf.At(c, keys...) }

const (
	pluginText = `Add to containerd's configuration:
[proxy_plugins.mica]
  type = "snapshot"
  address = "%s"
  capabilities = ["remap-ids"]
  [proxy_plugins.mica.exports]
    root = "/var/lib/micad"
    enable_remote_snapshot_annotations = "true"`
	unpackText = `Add to containerd's configuration (the list replaces the default: overlayfs stays):
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/%[1]s"
  snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/%[1]s"
  snapshotter = "mica"`
	restartHint = "\nThen restart containerd."
)

// unpackFix names the platform of this machine: containerd unpacks no other with these
// snapshotters.
var unpackFix = fmt.Sprintf(unpackText, runtime.GOARCH)

// PluginFix says what makes containerd know the micad that listens at address.
func PluginFix(address string) string { return fmt.Sprintf(pluginText, address) + restartHint }

// checkContainerd looks at what containerd has to be told for Mica.
func checkContainerd(f *Findings, path, address string) {
	c, err := loadContainerd(path)
	if errors.Is(err, fs.ErrNotExist) {
		f.failure("containerd", err.Error(),
			"Name it with --containerd-config, or make one.\n"+fmt.Sprintf(pluginText,
				address)+"\n"+unpackFix+restartHint)
		return
	}
	if err != nil {
		f.failure("containerd", err.Error(), "")
		return
	}
	c.checkPlugin(f, address)
	c.checkUnpack(f)
	c.images().check(f, c["version"])
}

func (c containerdConfig) checkPlugin(f *Findings, address string) {
	fix := PluginFix(address)
	if c.at("proxy_plugins", "mica") == nil {
		f.failure("plugin", "containerd does not know the snapshotter mica", fix)
		return
	}
	if got := c.at("proxy_plugins", "mica", "type"); got != "snapshot" {
		f.failure("plugin", fmt.Sprintf("proxy_plugins.mica.type is %v", got), fix)
	}
	if got := c.at("proxy_plugins", "mica", "address"); got != address {
		f.failure("plugin",
			fmt.Sprintf("proxy_plugins.mica.address is %v, micad listens at %s", got, address), fix)
	} else {
		f.ok("plugin", fmt.Sprintf("proxy_plugins.mica, %s", address))
	}
	if c.at("proxy_plugins", "mica", "exports", "enable_remote_snapshot_annotations") != "true" {
		f.warning("annotations",
			"proxy_plugins.mica.exports.enable_remote_snapshot_annotations is not \"true\": "+
				"micad asks containerd's content store which layer of which image is pulled, at "+
				"micad's containerd_address", fix)
	} else {
		f.ok("annotations", "the transfer service tells micad which image a layer belongs to")
	}
	if c.at("proxy_plugins", "mica", "exports", "root") == nil {
		f.warning("exports", "proxy_plugins.mica.exports.root is missing: kubelet's image "+
			"garbage collection and disk accounting do not see Mica's disk", fix)
	}
}

func (c containerdConfig) checkUnpack(f *Findings) {
	list, _ := c.at("plugins", conf.Transfer, "unpack_config").([]any)
	var names []string
	other, fatal := "", "" // for another platform: mica's entry, one for which there is no differ
	for _, u := range list {
		m, _ := u.(map[string]any)
		name, _ := m["snapshotter"].(string)
		names = append(names, name)
		p, _ := m["platform"].(string)
		switch {
		case conf.RunsHere(p):
		case name == "mica":
			other = p
		case m["differ"] == nil && m["optional"] != true:
			fatal = fmt.Sprintf("%s for %s", name, p)
		}
	}
	report := f.failure
	if c.images().local() != "" { // CRI does without
		report = f.warning
	}
	switch {
	case other != "":
		report("unpack", fmt.Sprintf("unpack_config has mica for %s, this machine is %s", other,
			platforms.DefaultString()), unpackFix+restartHint)
	case fatal != "":
		f.failure("unpack", fmt.Sprintf("unpack_config has %s, this machine is %s: containerd's "+
			"transfer service does not start", fatal, platforms.DefaultString()), unpackFix+restartHint)
	case !slices.Contains(names, "mica"):
		report("unpack", "the transfer service may not unpack with mica: `ctr images pull` "+
			"and pulls by it fail or are not lazy", unpackFix+restartHint)
	case !slices.Contains(names, "overlayfs"):
		f.warning("unpack", "unpack_config names mica but no longer overlayfs: pulls with "+
			"overlayfs fail", unpackFix+restartHint)
	default:
		f.ok("unpack", "the transfer service unpacks with mica and overlayfs")
	}
}
