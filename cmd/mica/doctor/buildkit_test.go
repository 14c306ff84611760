package doctor

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// TestCheckBuildKit: containerd's plugin for BuildKit has a socket of its own, at which micad
// serves. Another snapshotter may have the name.
func TestCheckBuildKit(t *testing.T) {
	const (
		main  = "/run/micad/micad.sock"
		own   = "/run/micad/stargz.sock"
		mica  = "[proxy_plugins.mica]\ntype = 'snapshot'\naddress = '" + main + "'\n"
		other = "[proxy_plugins.other]\ntype = 'snapshot'\naddress = '"
		alias = "[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '"

		elsewhere = "error: proxy_plugins.stargz.address is"
		twice     = "error: containerd knows the snapshotter at "
	)
	foreign := filepath.Join(t.TempDir(), "foreign.sock")
	l, err := net.Listen("unix", foreign)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, tc := range map[string]struct{ config, serves, want string }{
		"none":                {mica, "", ""},
		"both":                {mica + alias + own + "'\n", own, "ok: proxy_plugins.stargz, " + own},
		"not micad's":         {mica + alias + own + "'\n", "", elsewhere},
		"at another place":    {mica + alias + own + "'\n", "/b", elsewhere},
		"not containerd's":    {mica, own, "warning: micad serves BuildKit at " + own},
		"another name":        {mica + other + own + "'\n", own, "warning: micad serves BuildKit at"},
		"without a socket":    {mica + alias + "'\n", "", elsewhere},
		"mica's socket":       {mica + alias + main + "'\n", "", twice + main},
		"two at its own":      {mica + alias + own + "'\n" + other + own + "'\n", own, twice + own},
		"mica's, alone there": {alias + main + "'\n", "", elsewhere},
		"another snapshotter": {mica + alias + foreign + "'\n", "", ""},
		"content at mica's": {mica + strings.Replace(other, "snapshot", "content", 1) + main + "'\n",
			"", ""},
	} {
		path := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(path, []byte(tc.config), 0o600); err != nil {
			t.Fatal(err)
		}
		var f Findings
		f.buildKit(path, main, admin.Info{BuildKit: tc.serves})
		var got string
		for _, x := range f {
			got += x.Status + ": " + x.Detail
			if x.Status != "ok" && x.Fix == "" {
				t.Errorf("%s: no fix", name)
			}
		}
		if !strings.HasPrefix(got, tc.want) || (got == "") != (tc.want == "") || len(f) > 1 {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestRemapIDs: containerd knows for each of micad's plugins who maps the IDs of user namespaces.
func TestRemapIDs(t *testing.T) {
	const can = "capabilities = ['remap-ids']\n"
	mica, alias := "[proxy_plugins.mica]\n", "[proxy_plugins.stargz]\naddress = '/b'\n"
	for _, tc := range []struct {
		config, serves string
		remaps         bool
		want           []string // statuses
	}{
		{mica + can, "", true, nil},
		{mica, "", false, nil},
		{mica, "", true, []string{"warning"}},
		{mica + can, "", false, []string{"error"}},
		{mica + can + alias + can, "/b", true, nil},
		{mica + can + alias, "/b", true, []string{"warning"}},
		{mica + can + alias, "/other", true, nil},
		{mica + can + alias + can, "/b", false, []string{"error", "error"}},
	} {
		path := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(path, []byte(tc.config), 0o600); err != nil {
			t.Fatal(err)
		}
		var f Findings
		f.remapIDs(path, admin.Info{BuildKit: tc.serves, RemapIDs: tc.remaps})
		var got []string
		for _, x := range f {
			got = append(got, x.Status)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q, micad at %q: %v, want %v", tc.config, tc.serves, got, tc.want)
		}
	}
}
