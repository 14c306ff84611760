package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

const aliasText = `In containerd's configuration:
[proxy_plugins.%s]
  type = "snapshot"
  address = %[2]q
In micad's:
[buildkit]
  socket = %[2]q
Then restart micad, and containerd after it. Or none of it: BuildKit's pulls are not lazy then.`

// names are the names by which containerd knows micad's snapshotters, where micad is as info says.
func (c containerdConfig) names(info admin.Info) []string {
	if info.BuildKit != "" && c.at("proxy_plugins", conf.Alias, "address") == info.BuildKit {
		return []string{"mica", conf.Alias}
	}
	return []string{"mica"}
}

// buildKit compares the plugins at micad's sockets, the one at address among them, with what micad
// serves there.
func (f *Findings) buildKit(config, address string, info admin.Info) {
	c, err := loadContainerd(config)
	if err != nil {
		return // told already
	}
	plugins := conf.Sub(c, "proxy_plugins")
	at := map[string][]string{} // snapshotters by address
	for _, name := range slices.Sorted(maps.Keys(plugins)) {
		if c.at("proxy_plugins", name, "type") == "snapshot" {
			where := conf.String(plugins, name, "address")
			at[where] = append(at[where], name)
		}
	}
	socket := cmp.Or(info.BuildKit, filepath.Join(filepath.Dir(address), conf.Alias+".sock"))
	fix := fmt.Sprintf(aliasText, conf.Alias, socket)
	alias := conf.String(plugins, conf.Alias, "address")
	for _, own := range slices.Compact([]string{address, socket}) {
		if len(at[own]) > 1 {
			f.failure("buildkit", fmt.Sprintf("containerd knows the snapshotter at %s by %d names, %s: "+
				"its collector removes the snapshots of each for the other", own, len(at[own]),
				strings.Join(at[own], " and ")), fix)
			return
		}
	}
	switch {
	case plugins[conf.Alias] == nil && info.BuildKit == "": // nobody wants it
	case plugins[conf.Alias] == nil:
		f.warning("buildkit", fmt.Sprintf("micad serves BuildKit at %s, and containerd has no plugin "+
			"%s there", info.BuildKit, conf.Alias), fix)
	case alias == info.BuildKit && alias != "":
		f.ok("buildkit", fmt.Sprintf("proxy_plugins.%s, %s: BuildKit pulls lazily by this name",
			conf.Alias, alias))
	case info.BuildKit != "" || alias == address || !answers(alias):
		f.failure("buildkit", fmt.Sprintf("proxy_plugins.%s.address is %q, and micad does not serve "+
			"BuildKit there", conf.Alias, alias), fix)
	}
}

// answers says whether anybody listens at a socket, as another snapshotter may.
func answers(socket string) bool {
	c, err := net.Dial("unix", strings.TrimPrefix(socket, "unix://"))
	if err == nil {
		c.Close()
	}
	return err == nil
}
