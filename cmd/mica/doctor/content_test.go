package doctor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// TestCheckContent: containerd takes one content plugin, and micad has to be told that it is it.
func TestCheckContent(t *testing.T) {
	const (
		off   = "disabled_plugins = ['io.containerd.content.v1.content']\n"
		proxy = "[proxy_plugins.mica-content]\ntype = 'content'\n"
		store = "/var/lib/containerd/io.containerd.content.v1.content"
	)
	for name, tc := range map[string]struct {
		config, store, want string
	}{
		"neither":            {"", "", "ok"},
		"both":               {off + proxy, store, "ok"},
		"another root":       {"root = '/data'\n" + off + proxy, store, "error"},
		"that root":          {"root = '/data'\n" + off + proxy, "/data" + store[19:], "ok"},
		"micad alone":        {"", store, "warning"},
		"containerd alone":   {off + proxy, "", "error"},
		"two plugins":        {proxy, store, "error"},
		"no plugin":          {off, store, "error"},
		"two proxies":        {off + proxy + "[proxy_plugins.z]\ntype = 'content'\n", store, "error"},
		"not the other type": {"[proxy_plugins.mica]\ntype = 'snapshot'\n", "", "ok"},
	} {
		path := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(path, []byte(tc.config), 0o600); err != nil {
			t.Fatal(err)
		}
		var f Findings
		f.content(path, admin.Info{Content: tc.store})
		if !f.has("content", tc.want) || len(f) != 1 {
			t.Errorf("%s: %+v, want %s", name, f, tc.want)
		}
	}
}
