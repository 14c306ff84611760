package setup

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// TestByHand is a machine that has all of it already.
func TestByHand(t *testing.T) {
	for _, target := range []string{"containerd", "kubeadm"} {
		root := machine(t, tree{etcContainerd: `version = 3
[proxy_plugins.mica]
type = "snapshot"
address = "/run/micad/micad.sock"
capabilities = ["remap-ids"]
[proxy_plugins.mica.exports]
root = "/var/lib/micad"
enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.transfer.v1.local"]
config_path = "/etc/containerd/certs.d"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "` + here + `"
snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "` + here + `"
snapshotter = "mica"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "mica"
registry.config_path = "/etc/containerd/certs.d"
`})
		out, err := run(t, root, Options{Target: target}, Run)
		if err != nil || out != "Nothing to change.\n" {
			t.Errorf("%s: %v, prints\n%s", target, err, out)
		}
	}
}

// TestDiff are changes as they are shown.
func TestDiff(t *testing.T) {
	for _, tc := range []struct {
		change
		want string
	}{
		{change{"/new", nil, []byte("a\nb\n")}, "--- /dev/null\n+++ /new\n@@ -0,0 +1,2 @@\n+a\n+b\n"},
		{change{"/f", []byte("1\n2\n3\n4\n5\n6\n7\n8\n9\n"), []byte("1\n2\n3\n4\nx\n6\n7\n8\n9\n")},
			"--- /f\n+++ /f\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+x\n 6\n 7\n 8\n"},
		{change{"/f", []byte("b"), []byte("a\nb")}, "--- /f\n+++ /f\n@@ -1,1 +1,2 @@\n+a\n b\n"},
		{change{"/old", []byte("a\n"), nil}, "/old is removed\n"},
	} {
		if got := tc.diff(); got != tc.want {
			t.Errorf("%s\nwant\n%s", got, tc.want)
		}
	}
}

// TestRefused are machines that are left as they are, with a reason.
func TestRefused(t *testing.T) {
	const (
		config = etcContainerd
		k3s    = rancherDir + "/config.toml"
		dropIn = "/etc/containerd/conf.d/mica.toml"
	)
	for name, tc := range map[string]struct {
		target string
		files  tree
		want   string
	}{
		"not TOML":     {"containerd", tree{config: "[[["}, "containerd does not take " + config},
		"not k3s'":     {"k3s", tree{k3s: "[[["}, "parse " + k3s},
		"from later":   {"k3s", tree{k3s: "version = 5"}, "use a newer mica"},
		"no table":     {"k3s", tree{k3s: "plugins = 3"}, "plugins is no table"},
		"containerd 1": {"k3s", tree{k3s: "version = 2"}, "Mica needs one with containerd 2"},
		"lost import":  {"containerd", tree{config: "imports = ['/no.toml']"}, "/no.toml"},
		"foreign drop-in": {"containerd", tree{config: "", dropIn: "root = '/'"},
			"mica setup has not written it"},
		"later drop-in": {"containerd", tree{config: "imports = ['/etc/containerd/conf.d/*.toml']",
			"/etc/containerd/conf.d/z.toml": "version = 3\n" +
				"[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n"}, "after " + dropIn},
		"CRI off":         {"kubeadm", tree{config: debian}, "switches CRI off"},
		"daemon.json":     {"docker", tree{daemonJSON: "{,}"}, "parse " + daemonJSON},
		"dockerd's flag":  {"docker", tree{dockerUnits[0]: "--storage-driver=x"}, "take the flag out"},
		"micad's content": {"docker", tree{micadConfig: "content_store = '/x'"}, "change it"},
		"k3s' template": {"k3s", tree{k3s: rancherPlain,
			rancherDir + "/config-v3.toml.tmpl": "[proxy_plugins.mica]"}, "take it out"},
		"no target": {"docker-compose", nil, "name one of"},
		"another stargz": {"docker --buildkit", tree{config: "version = 3\n[proxy_plugins.stargz]\n" +
			"type = 'snapshot'\naddress = '/run/containerd-stargz-grpc.sock'\n"}, "take the other out"},
		"no BuildKit socket": {"docker --buildkit", tree{micadConfig: "[buildkit]\nsocket = ''\n"},
			"buildkit.socket in " + micadConfig + ` is "", and has to be "/run/micad/stargz.sock"`},
		"BuildKit in kind": {"kind --buildkit", nil, "not made for kind's nodes"},
		"BuildKit in a template of old": {"k3s --buildkit", tree{k3s: rancherPlain,
			rancherDir + "/config-v3.toml.tmpl": "# Uses Mica's snapshotter." + mark}, "say --undo first"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := machine(t, tc.files)
			before := content(t, root)
			var o Options
			o.Target, o.BuildKit = strings.CutSuffix(tc.target, " --buildkit")
			_, err := run(t, root, o, Run)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q in it", err, tc.want)
			}
			if got := content(t, root); !maps.Equal(got, before) {
				t.Errorf("files have changed: %v", got)
			}
		})
	}
}

// TestRefusedByContainerd is a result that containerd does not take: all files are as before.
func TestRefusedByContainerd(t *testing.T) {
	root := machine(t, tree{etcContainerd: kind})
	before := content(t, root)
	o := Options{Target: "containerd"}
	o.Out, o.Micad = t.Output(), micadConfig
	o.Confirm = func() error { // the machine's containerd is another one after the change
		return errors.Join(os.Remove("/usr/bin/containerd"),
			os.WriteFile("/usr/bin/containerd", nil, 0o755))
	}
	err := in(t, root, func() error { return Run(t.Context(), o) })
	if err == nil || !strings.Contains(err.Error(), "all files are as they were") {
		t.Error(err)
	}
	if got := content(t, root); !maps.Equal(got, before) {
		t.Errorf("files have changed: %v", got)
	}
}

// TestUndoChanged takes back what stands in files that others have changed since.
func TestUndoChanged(t *testing.T) {
	root := machine(t, tree{etcContainerd: kind})
	o := Options{Target: "containerd"}
	refused := func(why string) {
		t.Helper()
		if _, err := run(t, root, o, Undo); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q in it", err, why)
		}
	}
	refused("nothing to undo")
	if _, err := run(t, root, o, Run); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(root + etcContainerd)
	if err != nil {
		t.Fatal(err)
	}
	write(t, root+etcContainerd, string(b)+"# more\n")
	const old = etcContainerd + ".before-mica"
	refused(old)
	got := content(t, root)
	if got[old] != kind || got["/etc/containerd/conf.d/mica.toml"] == "" {
		t.Errorf("files: %v", got)
	}
	write(t, root+etcContainerd, kind+"# more\n") // by hand, or by who writes it at each boot
	if _, err := run(t, root, o, Undo); err != nil {
		t.Fatal(err)
	}
	want := tree{etcContainerd: kind + "# more\n", old: kind, os.DevNull: ""}
	if got := content(t, root); !maps.Equal(got, want) {
		t.Errorf("files: %v, want %v", got, want)
	}
}

// TestTogether sets up one containerd for Kubernetes and Docker, in either order, and takes both
// back. The plugin for BuildKit stays, whoever is set up after it.
func TestTogether(t *testing.T) {
	for _, order := range [][]string{{"kubeadm", "docker"}, {"docker", "kubeadm"}} {
		root := machine(t, tree{etcContainerd: containerd17})
		before := content(t, root)
		for i, target := range append(order, order...) {
			o := Options{Target: target, BuildKit: i == 1}
			if _, err := run(t, root, o, Run); err != nil {
				t.Fatal(err)
			}
		}
		c := dumped(t, root, etcContainerd)
		if conf.At(c, "plugins", conf.Images, "snapshotter") != "mica" ||
			conf.At(c, "proxy_plugins", "mica-content", "type") != "content" ||
			!strings.Contains(content(t, root)[daemonJSON], `"storage-driver": "stargz"`) ||
			conf.At(c, "proxy_plugins", "stargz", "address") != "/run/micad/stargz.sock" {
			t.Errorf("%v: %v", order, c["proxy_plugins"])
		}
		if _, err := run(t, root, Options{Target: "docker"}, Undo); err != nil {
			t.Fatal(err)
		}
		if got := content(t, root); !maps.Equal(got, before) {
			t.Errorf("%v: after --undo %v", order, got)
		}
	}
}

// TestPatches gives containerd the lines that kind and nodeadm merge into its configuration.
func TestPatches(t *testing.T) {
	for _, tc := range []struct{ target, config, from, to string }{
		{"kind", kind, "- |-\n", "\n\n#"},
		{"eks", eks, "config: |\n", "--- "},
	} {
		root := machine(t, nil)
		out, err := run(t, root, Options{Target: tc.target, DryRun: true}, Run)
		if err != nil {
			t.Fatal(err)
		}
		_, patch, _ := strings.Cut(out, tc.from)
		patch, _, _ = strings.Cut(patch, tc.to)
		var lines []string
		for l := range strings.Lines(patch) {
			l = strings.TrimLeft(strings.TrimPrefix(l, "+"), " ")
			if !strings.HasPrefix(l, "note:") {
				lines = append(lines, l)
			}
		}
		var c, more conf.Table
		err = errors.Join(toml.Unmarshal([]byte(tc.config), &c),
			toml.Unmarshal([]byte(strings.Join(lines, "")), &more))
		if err != nil {
			t.Fatalf("%v in\n%s", err, lines)
		}
		conf.Merge(c, more)
		text, err := marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		write(t, root+etcContainerd, text)
		if tc.target == "eks" { // as after a boot: all of it is there
			out, err := run(t, root, Options{Target: tc.target, DryRun: true}, Run)
			if err != nil || strings.Contains(out, "+++ /etc/containerd") {
				t.Errorf("%v, prints\n%s", err, out)
			}
		}
		got := dumped(t, root, etcContainerd)
		for key, want := range (tree{images("snapshotter"): "mica",
			images("disable_snapshot_annotations"): "false", transfer("unpack_config"): "overlayfs mica",
			"proxy_plugins/mica/address": "/run/micad/micad.sock"}) {
			if v := show(conf.At(got, strings.Split(key, "/")...)); v != want {
				t.Errorf("%s: containerd has %s = %q, want %q", tc.target, key, v, want)
			}
		}
	}
}
