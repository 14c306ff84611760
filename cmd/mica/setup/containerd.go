package setup

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/pelletier/go-toml/v2"
)

// hostsDir is where micad looks for hosts.toml where nothing else is said, criHosts where CRI does.
const (
	hostsDir = "/etc/containerd/certs.d"
	criHosts = hostsDir + ":/etc/docker/certs.d"
)

// dropIn is the name of the file that containerd imports. It comes late among those of a folder,
// because a later file wins.
const dropIn = "mica.toml"

// dumpTimeout bounds how long containerd reads its configuration.
const dumpTimeout = 30 * time.Second

// containerd plans a drop-in of containerd's configuration, and the import of it.
func (p *plan) containerd(ctx context.Context) error {
	version, err := dump(ctx, p.Config)
	if err != nil {
		return err
	}
	if version == 2 {
		return errors.New("this containerd is of version 1: Mica needs containerd 2")
	}
	text, err := p.read(p.Config)
	if err != nil {
		return err
	}
	main, err := parse(p.Config, text)
	if err != nil {
		return err
	}
	path, imported := dropInPath(p.Config, main)
	if err := p.dropIn(path, version, text != nil); err != nil || p.files[path] == nil {
		return err
	}
	if !imported {
		pattern := strings.TrimSuffix(path, ".toml") + "*.toml" // one that may match nothing
		if p.files[p.Config], err = addImport(text, pattern); err != nil {
			return fmt.Errorf("%s: %w", p.Config, err)
		}
	}
	return p.check(path)
}

// dropInPath is where the drop-in of a configuration lies, and whether that is imported already.
func dropInPath(config string, c table) (string, bool) {
	for _, pattern := range imports(config, c) {
		path := filepath.Join(filepath.Dir(pattern), dropIn)
		ok, _ := filepath.Match(filepath.Base(pattern), dropIn)
		if ok && !strings.ContainsAny(filepath.Dir(pattern), "*?[") {
			return path, true
		}
	}
	return filepath.Join(filepath.Dir(config), "conf.d", dropIn), false
}

// dropIn plans the drop-in, unless all of it stands in the configuration without it.
func (p *plan) dropIn(path string, version int, exists bool) error {
	text, err := p.read(path)
	if err != nil {
		return err
	}
	old, err := parse(path, text)
	if err != nil {
		return err
	}
	p.files[path] = nil // what the configuration is without it
	base := table{}
	if exists {
		if base, err = load(p.Config, p.files); err != nil {
			return err
		}
	}
	delete(p.files, path)
	want, err := p.wanted(base, old, version)
	if err != nil || has(base, want) {
		return err
	}
	want["version"] = int64(3) // all of containerd 2 takes it
	b, err := marshal(want)
	if err != nil {
		return err
	}
	return p.own(path, b)
}

// wanted is what containerd has to be told, where it is told base without mica, and old by an
// earlier mica setup, of another target maybe.
func (p *plan) wanted(base, old table, version int) (table, error) {
	exports := table{"root": p.daemon.Root, "enable_remote_snapshot_annotations": "true"}
	mica := table{"type": "snapshot", "address": p.daemon.Address, "exports": exports}
	if p.daemon.RemapIDs {
		mica["capabilities"] = []any{"remap-ids"}
	}
	proxies := table{"mica": mica}
	transfer := table{"unpack_config": unpackers(base, version)}
	plugins := table{transferPlugin: transfer}
	want := table{"proxy_plugins": proxies, "plugins": plugins}

	images, _ := at(base, "plugins", imagesPlugin).(table)
	hosts, _ := at(images, "registry", "config_path").(string)
	if p.cri || at(old, "plugins", imagesPlugin) != nil {
		cri := table{"snapshotter": "mica"}
		switch local := pullsLocally(images); {
		case local: // by the transfer service the plugin's exports do it
			cri["disable_snapshot_annotations"] = false
		case hosts == "" || hosts == criHosts: // the transfer service reads nothing of a list
			hosts = hostsDir
			cri["registry"] = table{"config_path": hosts}
		case strings.Contains(hosts, ":"):
			p.notes = append(p.notes, fmt.Sprintf("CRI's registry.config_path is %s; the transfer "+
				"service, by which CRI pulls, reads hosts.toml of a single folder only", hosts))
		}
		plugins[imagesPlugin] = cri
	}
	if off, _ := base["disabled_plugins"].([]any); p.required &&
		(slices.Contains(off, any(oldCRI)) || slices.Contains(off, any(imagesPlugin))) {
		return nil, fmt.Errorf("%s switches CRI off (disabled_plugins), which Kubernetes needs: "+
			"take it out there", p.Config)
	}
	hosts = cmp.Or(hosts, hostsDir)
	if stringAt(base, "plugins", transferPlugin, "config_path") == "" &&
		!strings.Contains(hosts, ":") {
		transfer["config_path"] = hosts
	}
	if len(tableAt(images, "registry", "mirrors")) > 0 {
		p.notes = append(p.notes, "micad does not read CRI's registry.mirrors, which containerd "+
			"gives up: hosts.toml below "+hostsDir+" is read by both")
	}

	if p.Target == "docker" || at(old, "proxy_plugins", "mica-content") != nil {
		root := cmp.Or(stringAt(base, "root"), "/var/lib/containerd")
		want["disabled_plugins"] = []any{contentPlugin}
		proxies["mica-content"] = table{"type": "content", "address": p.daemon.Address}
		store := filepath.Join(root, contentPlugin)
		if err := p.setMicad("", "content_store", store); err != nil {
			return nil, err
		}
	}
	return want, p.agree(base, hosts)
}

// agree plans the lines of micad's configuration without which it asks another containerd, or
// other mirrors.
func (p *plan) agree(base table, hosts string) error {
	socket := cmp.Or(stringAt(base, "plugins", "io.containerd.server.v1.grpc", "address"),
		stringAt(base, "grpc", "address"))
	if socket != "" && socket != "/run/containerd/containerd.sock" {
		if err := p.setMicad("", "containerd_address", socket); err != nil {
			return err
		}
	}
	if hosts == hostsDir {
		return nil
	}
	return p.setMicad("remote", "config_path", hosts)
}

// unpackers is the transfer service's list with mica. It takes the place of containerd's default,
// so that is in it too: overlayfs and, from containerd 2.3 on, EROFS for images of its own.
func unpackers(base table, version int) []any {
	here := "linux/" + runtime.GOARCH
	list, _ := at(base, "plugins", transferPlugin, "unpack_config").([]any)
	list = slices.Clone(list)
	if list == nil {
		list = []any{table{"platform": here, "snapshotter": "overlayfs", "differ": "walking"}}
		if version > 3 {
			list = append(list, table{"platform": "linux(+erofs)/" + runtime.GOARCH,
				"snapshotter": "erofs", "differ": "erofs", "optional": true})
		}
	}
	if !slices.ContainsFunc(list, func(u any) bool {
		entry, _ := u.(table)
		return entry["snapshotter"] == "mica" && runsHere(stringAt(entry, "platform"))
	}) {
		list = append(list, table{"platform": here, "snapshotter": "mica", "differ": "walking"})
	}
	return list
}

func runsHere(platform string) bool {
	p, err := platforms.Parse(platform)
	return err == nil && platforms.NewMatcher(p).Match(platforms.DefaultSpec())
}

// pullsLocally says whether CRI pulls by itself, not by the transfer service: what
// CheckLocalImagePullConfigs of containerd decides. Its pulls are as lazy. What it discards of
// unpacked layers is nothing, because lazy layers have no blobs on the node.
func pullsLocally(images table) bool {
	for _, key := range []string{
		"use_local_image_pull", "discard_unpacked_layers", "image_pull_with_sync_fs",
	} {
		if images[key] == true {
			return true
		}
	}
	for _, key := range []string{"mirrors", "configs", "auths"} {
		if len(tableAt(images, "registry", key)) > 0 {
			return true
		}
	}
	downloads := images["max_concurrent_downloads"]
	return images["disable_snapshot_annotations"] == false ||
		downloads != nil && downloads != int64(3)
}

// check says whether the drop-in has the last word where the files are as planned.
func (p *plan) check(path string) error {
	own, err := parse(path, p.files[path])
	if err != nil {
		return err
	}
	delete(own, "version")
	merged, err := load(p.Config, p.files)
	if err != nil {
		return err
	}
	for _, key := range []string{"proxy_plugins", "plugins", "disabled_plugins"} {
		if !has(merged[key], own[key]) && own[key] != nil {
			return fmt.Errorf("another file that %s imports sets, after %s, some of its %s "+
				"otherwise: take that out there", p.Config, path, key)
		}
	}
	return nil
}

// dump has containerd read a configuration, and returns the newest version of configurations that
// it writes. 0: this machine's containerd is not in the path.
func dump(ctx context.Context, config string) (int, error) {
	bin, err := exec.LookPath("containerd")
	if err != nil {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "--config", config, "config", "dump")
	var told bytes.Buffer
	cmd.Stderr = &told
	out, err := cmd.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(told.String()), "\n")
		return 0, fmt.Errorf("containerd does not take %s: %w: %s", config, err,
			lines[len(lines)-1])
	}
	var c struct {
		Version int `toml:"version"`
	}
	if err := toml.Unmarshal(out, &c); err != nil {
		return 0, fmt.Errorf("parse what containerd tells of %s: %w", config, err)
	}
	return c.Version, nil
}

func marshal(c table) (string, error) {
	var b strings.Builder
	e := toml.NewEncoder(&b)
	e.SetIndentTables(true)
	err := e.Encode(c)
	return b.String(), err
}

// stringAt is a string in a table; "" where there is none.
func stringAt(c table, keys ...string) string {
	s, _ := at(c, keys...).(string)
	return s
}

// tableAt is a table in a table; nil where there is none.
func tableAt(c table, keys ...string) table {
	t, _ := at(c, keys...).(table)
	return t
}
