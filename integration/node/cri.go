package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// CRI configures containerd's CRI plugin: Mica is its snapshotter, pods get a
// network of their own by the CNI plugins of Debian's package
// containernetworking-plugins.
type CRI struct {
	PauseImage string // reference of the sandbox image
	Subnet     string // of the pods, e.g. 10.88.0.0/24; must not be in use
	Overlayfs  bool   // containerd's own snapshotter in place of Mica
	Images     string // more of the images plugin's configuration, TOML
	K3s        bool   // containerd's configuration is that of k3s; Images is left out
	ByMicad    bool   // micad passes the kubelet's image calls on to containerd
}

// cniBin is where Debian's package puts the plugins.
const cniBin = "/usr/lib/cni"

func (c *CRI) prepare(n *Node) error {
	dir := filepath.Join(n.Dir, "cni")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// ptp: a pair of interfaces for each pod, no bridge and no firewall rules
	conf := fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "mica-test",
  "plugins": [{
    "type": "ptp",
    "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]]}
  }]
}`, filepath.Join(n.Dir, "cni-state"), c.Subnet)
	return os.WriteFile(filepath.Join(dir, "10-mica-test.conflist"), []byte(conf), 0o644)
}

func (c *CRI) config(n *Node) string {
	snapshotter := Snapshotter
	if c.Overlayfs || n.opts.Setup {
		snapshotter = "overlayfs"
	}
	return strings.NewReplacer(
		"@SNAPSHOTTER@", snapshotter, "@PAUSE@", c.PauseImage, "@CERTS@", n.HostsDir(),
		"@CNIBIN@", cniBin, "@CNICONF@", filepath.Join(n.Dir, "cni"), "@IMAGES@", c.Images,
	).Replace(`
[plugins.'io.containerd.cri.v1.images']
snapshotter = '@SNAPSHOTTER@'
stats_collect_period = 1
@IMAGES@
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '@PAUSE@'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '@CERTS@'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
netns_mounts_under_state_dir = true
enable_unprivileged_ports = false
enable_unprivileged_icmp = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['@CNIBIN@']
conf_dir = '@CNICONF@'
[plugins.'io.containerd.grpc.v1.cri']
stream_server_address = '127.0.0.1'
stream_server_port = '0'
`)
}

// Trust makes containerd and micad speak plain HTTP to a registry.
func (n *Node) Trust(registry string) error {
	dir := filepath.Join(n.HostsDir(), registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = \"http://%s\"\n", registry), 0o644)
}
