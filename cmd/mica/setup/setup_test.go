package setup

import (
	"maps"
	"os/exec"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// TestSetup sets machines up as their distributions have them, asks containerd what it makes of the
// files, sets them up again, and takes it back.
func TestSetup(t *testing.T) {
	const config = "/etc/containerd/config.toml"
	usual := tree{ // keys of the dump and their values, as printed
		"proxy_plugins/mica/address":                                    "/run/micad/micad.sock",
		"proxy_plugins/mica/type":                                       "snapshot",
		"proxy_plugins/mica/exports/root":                               "/var/lib/micad",
		"proxy_plugins/mica/exports/enable_remote_snapshot_annotations": "true",
		"proxy_plugins/mica/capabilities":                               "[remap-ids]",
		images("snapshotter"):                                           "mica",
		transfer("unpack_config"):                                       "overlayfs erofs mica",
	}
	for name, tc := range map[string]struct {
		target string
		files  tree
		want   tree // beside usual
		after  tree // parts of files; "": no such file
	}{
		"no configuration": {"containerd", nil,
			tree{images("registry/config_path"): hostsDir, transfer("config_path"): hostsDir}, nil},
		"containerd's default": {"containerd", tree{config: ""}, // see below
			tree{images("registry/config_path"): hostsDir},
			tree{"/etc/containerd/conf.d/mica.toml": header}},
		"containerd 1.7's": {"kubeadm", tree{config: containerd17},
			tree{transfer("unpack_config"): "overlayfs mica",
				images("pinned_images/sandbox"): "registry.k8s.io/pause:3.8"},
			tree{config: `imports = ["/etc/containerd/conf.d/mica*.toml", ]`}},
		"EKS": {"eks", tree{config: eks},
			tree{images("discard_unpacked_layers"): "true",
				images("disable_snapshot_annotations"): "false",
				images("registry/config_path"):         conf.CRIHosts},
			tree{"/etc/eks/nodeadm.d/mica.yaml": "kind: NodeConfig",
				micadConfig: "[remote] # mica setup\nconfig_path = \"" + conf.CRIHosts + `"`}},
		"EKS with a folder of imports": {"eks",
			tree{config: "imports = [\"/etc/containerd/config.d/*.toml\"]\n" + eks}, nil,
			tree{"/etc/containerd/config.d/mica.toml": "", config: ""}},
		"kind's node": {"containerd", tree{config: kind},
			tree{images("disable_snapshot_annotations"): "false",
				"proxy_plugins/fuse-overlayfs/type": "snapshot",
				images("pinned_images/sandbox"):     "registry.k8s.io/pause:3.10"}, nil},
		"Docker": {"docker", tree{config: debian, dockerUnits[0]: dockerUnit,
			daemonJSON:  `{"log-driver":"journald","mtu":1450,"storage-driver":"overlay2"}`,
			micadConfig: "log_level = \"debug\"\n[fetch]\nfill = \"all\"\n"},
			tree{images("snapshotter"): "overlayfs", "proxy_plugins/mica-content/type": "content",
				"disabled_plugins": "[io.containerd.grpc.v1.cri io.containerd.content.v1.content]"},
			tree{daemonJSON: "{\n  \"features\": {\n" +
				"    \"containerd-snapshotter\": true\n  },\n" +
				"  \"log-driver\": \"journald\",\n  \"mtu\": 1450,\n  \"storage-driver\": \"mica\"\n}\n",
				micadConfig: "content_store = \"/var/lib/containerd/" + conf.Content +
					"\"" + mark + "\nlog_level"}},
		"Docker and BuildKit": {"docker --buildkit", tree{daemonJSON: `{"storage-driver":"mica"}`},
			tree{images("snapshotter"): "overlayfs", "proxy_plugins/stargz/type": "snapshot",
				"proxy_plugins/stargz/address":      "/run/micad/stargz.sock",
				"proxy_plugins/stargz/capabilities": "[remap-ids]"},
			tree{daemonJSON: `"storage-driver": "stargz"`,
				micadConfig: "[buildkit] # mica setup\nsocket = \"/run/micad/stargz.sock\""}},
		"BuildKit at another socket": {"containerd --buildkit", tree{config: "version = 3\n" +
			"[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/run/b.sock'\n",
			micadConfig: "[buildkit]\nsocket = 'unix:///run/b.sock'\n"},
			tree{"proxy_plugins/stargz/address": "/run/b.sock",
				"proxy_plugins/stargz/capabilities": "[remap-ids]"}, nil},
		"k3s and BuildKit": {"k3s --buildkit", tree{rancherDir + "/config.toml": rancherPlain},
			tree{transfer("unpack_config"): "overlayfs mica",
				"proxy_plugins/stargz/address": "/run/micad/stargz.sock"}, nil},
		"Docker without flags": {"docker", nil, tree{images("snapshotter"): "overlayfs"},
			tree{daemonJSON: `"containerd": "/run/containerd/containerd.sock"`}},
		"k3s that imports": {"k3s", tree{rancherDir + "/config.toml": rancherImports},
			tree{images("disable_snapshot_annotations"): "false",
				transfer("unpack_config"): "overlayfs mica",
				transfer("config_path"):   rancherDir + "/certs.d"},
			tree{"/etc/rancher/k3s/config.yaml.d/mica.yaml": "\nsnapshotter: mica\n",
				rancherDir + "/config-v3.toml.d/mica.toml": header,
				micadConfig: `containerd_address = "` + RancherSocket}},
		"k3s by its template": {"k3s", tree{rancherDir + "/config.toml": rancherPlain},
			tree{transfer("unpack_config"): "overlayfs mica"},
			tree{rancherDir + "/config-v3.toml.tmpl": `{{ template "base" . }}`}},
		"k3s with a template": {"k3s", tree{rancherDir + "/config.toml": rancherPlain,
			rancherDir + "/config-v3.toml.tmpl": "{{ template \"base\" . }}\n[debug]\nlevel = 'debug'\n" +
				"[proxy_plugins]\n[proxy_plugins.other]\ntype = 'snapshot'\n[plugins]\n"},
			tree{"proxy_plugins/other/type": "snapshot",
				transfer("unpack_config"): "overlayfs mica", "debug/level": "debug"}, nil},
		"another entry, for another machine": {"containerd", tree{config: "version = 3\n" +
			"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n" +
			"platform = 'linux/riscv64'\nsnapshotter = 'mica'\n" +
			"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n" +
			"platform = '" + here + "'\nsnapshotter = 'native'\n"},
			tree{transfer("unpack_config"): "mica native mica"}, nil},
		"imports and mica by hand, another socket": {"containerd", tree{config: "version = 3\n" +
			"imports = [ # ours\n \"conf.d/[a-z]*.toml\",\n]\n" +
			"[proxy_plugins.mica]\ntype = 'snapshot'\naddress = '/old'\n",
			"/etc/containerd/conf.d/a.toml": "[plugins.'io.containerd.cri.v1.images']\n" +
				"max_concurrent_downloads = 5\n"},
			tree{images("max_concurrent_downloads"): "5", images("disable_snapshot_annotations"): "false"},
			tree{config: "imports = [ # ours\n"}},
		"micad's settings": {"containerd", tree{
			config: "version = 4\n[plugins.'io.containerd.server.v1.grpc']\n" +
				"address = '/run/other.sock'\n",
			micadConfig: "root = '/data'\naddress = 'unix:///run/m.sock'\nremap_ids = false\n"},
			tree{"proxy_plugins/mica/address": "/run/m.sock", "proxy_plugins/mica/exports/root": "/data",
				"proxy_plugins/mica/capabilities": "[]"},
			tree{micadConfig: "containerd_address = \"/run/other.sock\""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := machine(t, tc.files)
			if name == "containerd's default" {
				cmd := exec.CommandContext(t.Context(), root+"/usr/bin/containerd", "config", "default")
				b, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				write(t, root+config, string(b))
			}
			before := content(t, root)
			var o Options
			o.Target, o.BuildKit = strings.CutSuffix(tc.target, " --buildkit")
			dry := o
			dry.DryRun = true
			shown, err := run(t, root, dry, Run)
			if err != nil {
				t.Fatal(err)
			}
			if got := content(t, root); !maps.Equal(got, before) {
				t.Fatalf("--dry-run has changed files: %v", got)
			}
			done, err := run(t, root, o, Run)
			if err != nil || !strings.HasPrefix(done, shown) {
				t.Fatalf("%v, prints\n%s\nwant what --dry-run prints:\n%s", err, done, shown)
			}
			after := content(t, root)
			for path, part := range tc.after {
				if got, ok := after[path]; !ok || !strings.Contains(got, part) ||
					part == "" && path == config && got != before[path] {
					t.Errorf("%s is\n%s\nwant in it %q", path, got, part)
				}
			}
			file := config
			if o.Target == "k3s" {
				file = rancherDir + "/config.toml"
				rendered(t, root)
			}
			c := dumped(t, root, file)
			want := maps.Clone(usual)
			maps.Copy(want, tc.want)
			for key, value := range want {
				if got := show(conf.At(c, strings.Split(key, "/")...)); got != value {
					t.Errorf("containerd has %s = %q, want %q", key, got, value)
				}
			}
			out, err := run(t, root, o, Run)
			if err != nil || !strings.HasSuffix(out, "Nothing to change.\n") {
				t.Errorf("again: %v, prints\n%s", err, out)
			}
			if o.Target == "k3s" { // it writes its own
				write(t, root+file, before[file])
			}
			if _, err := run(t, root, o, Undo); err != nil {
				t.Fatal(err)
			}
			if got := content(t, root); !maps.Equal(got, before) {
				t.Errorf("after --undo: %v\nwant %v", got, before)
			}
		})
	}
}

// TestWithout: what mica setup adds to micad's configuration can be told from what was there.
func TestWithout(t *testing.T) {
	for _, text := range []string{"", "mode = 'fuse'\n", "[remote]\nconnections = 4\n",
		"mode = 'fuse'\n\n[fetch]\nfill = 'none'\n"} {
		after, _, err := addKey([]byte(text), "", "containerd_address", "/run/c.sock")
		if err == nil {
			after, _, err = addKey(after, "remote", "config_path", "/etc/certs.d")
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := string(Without(after)); got != text || string(after) == text {
			t.Errorf("%q has become %q, and is %q again", text, after, got)
		}
	}
}
