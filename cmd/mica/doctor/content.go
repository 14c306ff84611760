package doctor

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// content compares what containerd's configuration says of its content plugin with what micad does.
func (f *Findings) content(path string, info admin.Info) {
	c, err := loadContainerd(path)
	if err != nil {
		return // told already
	}
	root, ok := c.at("root").(string)
	if !ok || root == "" {
		root = "/var/lib/containerd"
	}
	store := filepath.Join(root, conf.Content)
	plugins, _ := c.at("proxy_plugins").(map[string]any)
	var names []string
	for _, name := range slices.Sorted(maps.Keys(plugins)) {
		if c.at("proxy_plugins", name, "type") == "content" {
			names = append(names, name)
		}
	}
	disabled, _ := c.at("disabled_plugins").([]any)
	off := slices.Contains(disabled, any(conf.Content))
	fix := fmt.Sprintf("In containerd's configuration:\n"+
		"disabled_plugins = [%q]\n[proxy_plugins.mica-content]\n  type = \"content\"\n"+
		"  address = \"/run/micad/micad.sock\"\nIn micad's:\ncontent_store = %q\n"+
		"Then restart micad, and containerd after it.", conf.Content, store)
	switch {
	case len(names) == 0 && off:
		f.failure("content", "containerd's own content plugin is disabled, and there is no other", fix)
	case len(names) == 0 && info.Content != "":
		f.warning("content", "micad's content_store is set, and containerd does not ask micad for "+
			"content", fix)
	case len(names) == 0:
		f.ok("content", "containerd keeps its content itself: exports and pushes of a lazy image "+
			"need its blobs (see docs/content.md)")
	case len(names) > 1:
		f.failure("content", fmt.Sprintf("containerd takes one content plugin, and has %v", names), fix)
	case !off:
		f.failure("content", "containerd has its own content plugin beside "+names[0]+
			": it takes one", fix)
	case info.Content == "":
		f.failure("content", "containerd asks micad for content, and content_store is not set in "+
			"micad's configuration", fix)
	case filepath.Clean(info.Content) != store:
		f.failure("content", fmt.Sprintf("micad's content_store is %s, containerd's content lies in %s",
			info.Content, store), fix)
	default:
		f.ok("content", "micad is containerd's content plugin: lazy images are whole for exports "+
			"and pushes")
	}
}
