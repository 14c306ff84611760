package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// criHosts is where CRI looks for hosts.toml where its configuration does not say.
const criHosts = "/etc/containerd/certs.d:/etc/docker/certs.d"

// criImages is what containerd's configuration says of CRI's images.
type criImages struct {
	table  string // the plugin's name
	values containerdConfig
}

// images returns CRI's settings from where containerd reads them: in version 2 of the configuration
// from a table that holds all of CRI.
func (c containerdConfig) images() criImages {
	i := criImages{table: "io.containerd.cri.v1.images", values: containerdConfig{}}
	tables := [][]string{{"plugins", i.table}}
	if c["version"] == int64(2) {
		i.table = "io.containerd.grpc.v1.cri"
		tables = [][]string{{"plugins", i.table}, {"plugins", i.table, "containerd"}}
	}
	for _, keys := range tables {
		if t, ok := c.at(keys...).(map[string]any); ok {
			merge(i.values, t)
		}
	}
	return i
}

// local names the setting for which CRI pulls images by itself, not by the transfer service; "" if
// there is none. containerd's function CheckLocalImagePullConfigs has the list (2.1 to 2.4).
func (i criImages) local() string {
	v := i.values
	filled := func(keys ...string) bool {
		t, _ := v.at(keys...).(map[string]any)
		return len(t) > 0
	}
	downloads := v["max_concurrent_downloads"]
	for _, setting := range []struct {
		name string
		is   bool
	}{
		{"use_local_image_pull = true", v["use_local_image_pull"] == true},
		{"disable_snapshot_annotations = false", v["disable_snapshot_annotations"] == false},
		{"discard_unpacked_layers = true", v["discard_unpacked_layers"] == true},
		{"registry.mirrors", filled("registry", "mirrors")},
		{"registry.configs", filled("registry", "configs")},
		{"registry.auths", filled("registry", "auths")},
		{"max_concurrent_downloads", downloads != nil && downloads != int64(3)},
		{"image_pull_with_sync_fs = true", v["image_pull_with_sync_fs"] == true},
	} {
		if setting.is {
			return setting.name
		}
	}
	return ""
}

func (i criImages) check(f *Findings) {
	snapshotter := i.values["snapshotter"]
	if snapshotter == nil {
		snapshotter = "overlayfs (no setting)"
	}
	if snapshotter != "mica" {
		f.warning("cri", fmt.Sprintf("Kubernetes' default snapshotter is %v", snapshotter),
			fmt.Sprintf("To start all pods lazily:\n[plugins.%q]\n  snapshotter = \"mica\"",
				i.table)+restartHint)
		return
	}
	way := "CRI pulls by the transfer service (from containerd 2.1 on)"
	if why := i.local(); why != "" {
		way = "CRI pulls by itself, not by the transfer service, because of " + why
	}
	f.ok("cri", "Kubernetes' default snapshotter is mica; "+way)
}

// pulls compares how containerd reaches registries, and what it tells of an image, with micad's
// configuration.
func (f *Findings) pulls(config string, info admin.Info) {
	c, err := loadContainerd(config)
	if err != nil {
		return // told already
	}
	i := c.images()
	if i.values["snapshotter"] == "mica" && i.local() != "" && !info.AsksContainerd &&
		i.values["disable_snapshot_annotations"] != false {
		f.failure("annotations", "CRI pulls by itself and does not say which image a layer is of, and "+
			"micad may not ask containerd (containerd_address is \"none\"): pods are not lazy",
			"Remove containerd_address from /etc/micad/config.toml and restart micad.")
	}
	cri, _ := i.values.at("registry", "config_path").(string)
	for _, key := range []string{"mirrors", "configs", "auths"} {
		if t, _ := i.values.at("registry", key).(map[string]any); len(t) > 0 && cri == "" {
			f.warning("hosts", "micad does not read registry."+key+" in containerd's configuration of CRI",
				"Write it as HOST/hosts.toml in "+info.HostsDir+" (auths: as docker's config.json).")
		}
	}
	if cri == "" && i.values["snapshotter"] == "mica" {
		cri = criHosts
	}
	transfer, _ := c.at("plugins", "io.containerd.transfer.v1.local", "config_path").(string)
	ours := filepath.SplitList(info.HostsDir)
	for _, theirs := range []struct{ who, path string }{
		{"CRI", cri}, {"the transfer service", transfer},
	} {
		for _, dir := range filepath.SplitList(theirs.path) {
			if _, err := os.Stat(dir); err == nil && !slices.Contains(ours, filepath.Clean(dir)) {
				f.warning("hosts", fmt.Sprintf("%s reads hosts.toml below %s, micad below %s: they may "+
					"reach different registries", theirs.who, dir, info.HostsDir),
					fmt.Sprintf("In /etc/micad/config.toml:\n[remote]\n  config_path = %q\n"+
						"Then restart micad.", theirs.path))
			}
		}
	}
}
