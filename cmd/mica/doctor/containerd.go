package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/containerd/platforms"
	"github.com/pelletier/go-toml/v2"
)

// maxImports bounds how many files one configuration may import.
const maxImports = 100

// containerdConfig is a containerd configuration with its imports merged in.
type containerdConfig map[string]any

// loadContainerd reads the file at path and what it imports, later files over
// earlier ones, as containerd does.
func loadContainerd(path string) (containerdConfig, error) {
	merged := containerdConfig{}
	queue := []string{path}
	seen := map[string]bool{}
	for len(queue) > 0 {
		file := queue[0]
		queue = queue[1:]
		if seen[file] {
			continue
		}
		if seen[file] = true; len(seen) > maxImports {
			return nil, fmt.Errorf("%s imports more than %d files", path, maxImports)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read containerd's configuration: %w", err)
		}
		var one map[string]any
		if err := toml.Unmarshal(b, &one); err != nil {
			return nil, fmt.Errorf("parse %s: %w", file, err)
		}
		merge(merged, one)
		imports, _ := one["imports"].([]any)
		for _, i := range imports {
			pattern, _ := i.(string)
			if pattern == "" {
				continue
			}
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(file), pattern)
			}
			found, err := filepath.Glob(pattern)
			if err != nil {
				return nil, fmt.Errorf("imports of %s: %w", file, err)
			}
			queue = append(queue, found...)
		}
	}
	return merged, nil
}

func merge(to, from map[string]any) {
	for k, v := range from {
		if sub, ok := v.(map[string]any); ok {
			if old, ok := to[k].(map[string]any); ok {
				merge(old, sub)
				continue
			}
		}
		to[k] = v
	}
}

// at walks down tables by name; nil where one is missing.
func (c containerdConfig) at(keys ...string) any {
	var v any = map[string]any(c)
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

const (
	pluginText = `Add to containerd's configuration:
[proxy_plugins.mica]
  type = "snapshot"
  address = "%s"
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
		f.failure("containerd", fmt.Sprintf("no configuration at %s", path),
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
	c.images().check(f)
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
	list, _ := c.at("plugins", "io.containerd.transfer.v1.local", "unpack_config").([]any)
	var names []string
	other, fatal := "", "" // for another platform: mica's entry, one for which there is no differ
	for _, u := range list {
		m, _ := u.(map[string]any)
		name, _ := m["snapshotter"].(string)
		names = append(names, name)
		p, _ := m["platform"].(string)
		switch {
		case runsHere(p):
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

// runsHere says whether images of a platform, as containerd's configuration has it, run on this
// machine; none is all.
func runsHere(platform string) bool {
	p, err := platforms.Parse(platform)
	return platform == "" || err == nil && platforms.NewMatcher(p).Match(platforms.DefaultSpec())
}
