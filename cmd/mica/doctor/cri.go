package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// criImages are the settings of CRI's images.
type criImages conf.Table

func (c containerdConfig) images() criImages {
	return conf.Sub(c, "plugins", conf.Images)
}

func (i criImages) local() string { return conf.LocalPull(i) }

func (i criImages) check(f *Findings, version any) {
	snapshotter := i["snapshotter"]
	if snapshotter == nil {
		snapshotter = "overlayfs (no setting)"
	}
	table := fmt.Sprintf("%q", conf.Images)
	if version == int64(2) {
		table = fmt.Sprintf("%q.containerd", conf.CRI)
	}
	if snapshotter != "mica" {
		f.warning("cri", fmt.Sprintf("Kubernetes' default snapshotter is %v", snapshotter),
			fmt.Sprintf("To start all pods lazily:\n[plugins.%s]\n  snapshotter = \"mica\"",
				table)+restartHint)
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
	if i["snapshotter"] == "mica" && i.local() != "" && !info.AsksContainerd &&
		i["disable_snapshot_annotations"] != false {
		f.failure("annotations", "CRI pulls by itself and does not say which image a layer is of, and "+
			"micad may not ask containerd (containerd_address is \"none\"): pods are not lazy",
			"Remove containerd_address from /etc/micad/config.toml and restart micad.")
	}
	cri := conf.String(i, "registry", "config_path")
	for _, key := range []string{"mirrors", "configs", "auths"} {
		if len(conf.Sub(i, "registry", key)) > 0 && cri == "" {
			f.warning("hosts", "micad does not read registry."+key+" in containerd's configuration of CRI",
				"Write it as HOST/hosts.toml in "+info.HostsDir+" (auths: as docker's config.json).")
		}
	}
	if cri == "" && i["snapshotter"] == "mica" {
		cri = conf.CRIHosts
	}
	if dirs := filepath.SplitList(cri); len(dirs) > 1 && i.local() == "" &&
		slices.ContainsFunc(dirs, isThere) {
		f.warning("hosts", "CRI pulls by the transfer service, which takes the list "+cri+" for one "+
			"folder: it reads no hosts.toml, and micad does",
			fmt.Sprintf("[plugins.%q.registry]\n  config_path = %q", conf.Images, dirs[0])+restartHint)
	}
	transfer := conf.String(c, "plugins", conf.Transfer, "config_path")
	ours := filepath.SplitList(info.HostsDir)
	for _, theirs := range []struct{ who, path string }{
		{"CRI", cri}, {"the transfer service", transfer},
	} {
		for _, dir := range filepath.SplitList(theirs.path) {
			if isThere(dir) && !slices.Contains(ours, filepath.Clean(dir)) {
				f.warning("hosts", fmt.Sprintf("%s reads hosts.toml below %s, micad below %s: they may "+
					"reach different registries", theirs.who, dir, info.HostsDir),
					fmt.Sprintf("In /etc/micad/config.toml:\n[remote]\n  config_path = %q\n"+
						"Then restart micad.", theirs.path))
			}
		}
	}
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
