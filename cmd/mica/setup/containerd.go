package setup

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// hostsDir is where micad looks for hosts.toml where nothing else is said.
const hostsDir = "/etc/containerd/certs.d"

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
	main, err := conf.Parse(p.Config, text)
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
func dropInPath(config string, c conf.Table) (string, bool) {
	for _, pattern := range conf.Imports(config, c) {
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
	old, err := conf.Parse(path, text)
	if err != nil {
		return err
	}
	p.files[path] = nil // what the configuration is without it
	base := conf.Table{}
	if exists {
		if base, err = conf.Load(p.Config, p.files); err != nil {
			return err
		}
	}
	delete(p.files, path)
	want, err := p.wanted(base, old, version)
	if err != nil || conf.Has(base, want) {
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
func (p *plan) wanted(base, old conf.Table, version int) (conf.Table, error) {
	mica := conf.Table{"type": "snapshot", "address": p.daemon.Address}
	if p.daemon.RemapIDs {
		mica["capabilities"] = []any{"remap-ids"}
	}
	proxies := conf.Table{"mica": mica}
	p.BuildKit = p.BuildKit || conf.At(old, "proxy_plugins", conf.Alias) != nil
	if p.BuildKit {
		alias := maps.Clone(mica)
		proxies[conf.Alias] = alias
		var err error
		if alias["address"], err = p.builder(base); err != nil {
			return nil, err
		}
	}
	mica["exports"] = conf.Table{"root": p.daemon.Root, "enable_remote_snapshot_annotations": "true"}
	transfer := conf.Table{"unpack_config": unpackers(base, version)}
	plugins := conf.Table{conf.Transfer: transfer}
	want := conf.Table{"proxy_plugins": proxies, "plugins": plugins}

	images, _ := conf.At(base, "plugins", conf.Images).(conf.Table)
	hosts, _ := conf.At(images, "registry", "config_path").(string)
	if p.cri || conf.At(old, "plugins", conf.Images) != nil {
		cri := conf.Table{"snapshotter": "mica"}
		switch local := conf.LocalPull(images) != ""; {
		case local: // by the transfer service the plugin's exports do it
			cri["disable_snapshot_annotations"] = false
		case hosts == "" || hosts == conf.CRIHosts: // the transfer service reads nothing of a list
			hosts = hostsDir
			cri["registry"] = conf.Table{"config_path": hosts}
		case strings.Contains(hosts, ":"):
			p.notes = append(p.notes, fmt.Sprintf("CRI's registry.config_path is %s; the transfer "+
				"service, by which CRI pulls, reads hosts.toml of a single folder only", hosts))
		}
		plugins[conf.Images] = cri
	}
	if off, _ := base["disabled_plugins"].([]any); p.required &&
		(slices.Contains(off, any(conf.CRI)) || slices.Contains(off, any(conf.Images))) {
		return nil, fmt.Errorf("%s switches CRI off (disabled_plugins), which Kubernetes needs: "+
			"take it out there", p.Config)
	}
	hosts = cmp.Or(hosts, hostsDir)
	if conf.String(base, "plugins", conf.Transfer, "config_path") == "" &&
		!strings.Contains(hosts, ":") {
		transfer["config_path"] = hosts
	}
	if len(conf.Sub(images, "registry", "mirrors")) > 0 {
		p.notes = append(p.notes, "micad does not read CRI's registry.mirrors, which containerd "+
			"gives up: hosts.toml below "+hostsDir+" is read by both")
	}

	if p.Target == "docker" || conf.At(old, "proxy_plugins", "mica-content") != nil {
		root := cmp.Or(conf.String(base, "root"), "/var/lib/containerd")
		want["disabled_plugins"] = []any{conf.Content}
		proxies["mica-content"] = conf.Table{"type": "content", "address": p.daemon.Address}
		store := filepath.Join(root, conf.Content)
		if err := p.setMicad("", "content_store", store); err != nil {
			return nil, err
		}
	}
	return want, p.agree(base, hosts)
}

// builder is the socket of the plugin for BuildKit, which it plans in micad's configuration too.
func (p *plan) builder(base conf.Table) (string, error) {
	socket := cmp.Or(p.daemon.BuildKit.Socket,
		filepath.Join(filepath.Dir(p.daemon.Address), conf.Alias+".sock"))
	address := strings.TrimPrefix(socket, "unix://")
	other := conf.String(base, "proxy_plugins", conf.Alias, "address")
	if other != "" && other != address {
		return "", fmt.Errorf("containerd has a plugin %s at %s, and micad's is at %s: take the other "+
			"out, because BuildKit knows one of that name", conf.Alias, other, address)
	}
	return address, p.setMicad("buildkit", "socket", socket)
}

// agree plans the lines of micad's configuration without which it asks another containerd, or
// other mirrors.
func (p *plan) agree(base conf.Table, hosts string) error {
	socket := cmp.Or(conf.String(base, "plugins", "io.containerd.server.v1.grpc", "address"),
		conf.String(base, "grpc", "address"))
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
func unpackers(base conf.Table, version int) []any {
	here := "linux/" + runtime.GOARCH
	list, _ := conf.At(base, "plugins", conf.Transfer, "unpack_config").([]any)
	list = slices.Clone(list)
	if list == nil {
		list = []any{conf.Table{"platform": here, "snapshotter": "overlayfs", "differ": "walking"}}
		if version > 3 {
			list = append(list, conf.Table{"platform": "linux(+erofs)/" + runtime.GOARCH,
				"snapshotter": "erofs", "differ": "erofs", "optional": true})
		}
	}
	if !slices.ContainsFunc(list, func(u any) bool {
		entry, _ := u.(conf.Table)
		return entry["snapshotter"] == "mica" && conf.RunsHere(conf.String(entry, "platform"))
	}) {
		list = append(list, conf.Table{"platform": here, "snapshotter": "mica", "differ": "walking"})
	}
	return list
}

// check says whether the drop-in has the last word where the files are as planned.
func (p *plan) check(path string) error {
	own, err := conf.Parse(path, p.files[path])
	if err != nil {
		return err
	}
	delete(own, "version")
	merged, err := conf.Load(p.Config, p.files)
	if err != nil {
		return err
	}
	for _, key := range []string{"proxy_plugins", "plugins", "disabled_plugins"} {
		if !conf.Has(merged[key], own[key]) && own[key] != nil {
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

// marshal is a configuration as text. Headers of the tables that only hold others are left out,
// because a text that this one is added to may have them.
func marshal(c conf.Table) (string, error) {
	b, err := toml.Marshal(c)
	return strings.TrimLeft(holders.ReplaceAllString(string(b), ""), "\n"), err
}

var holders = regexp.MustCompile(`(?m)^\[(plugins|proxy_plugins)\]\n`)
