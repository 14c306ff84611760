package setup

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

// RancherSocket is the socket of the containerd that k3s and RKE2 start.
const RancherSocket = "/run/k3s/containerd/containerd.sock"

// rancher plans what makes k3s or RKE2 write a configuration for its containerd that has mica. They
// write it at each start, by a template, and newer ones have it import a folder.
func (p *plan) rancher() error {
	dir := filepath.Dir(p.Config)
	text, err := p.read(p.Config)
	if err != nil {
		return err
	}
	main, err := conf.Parse(p.Config, text)
	if err != nil {
		return err
	}
	if v, ok := main["version"].(int64); ok && v < 3 {
		return fmt.Errorf("%s writes a configuration of version %d for its containerd: Mica needs "+
			"one with containerd 2 (and no config.toml.tmpl for an older one)", p.Target, v)
	}
	path, imported := dropInPath(p.Config, main)
	if imported {
		if err := p.dropIn(path, 3, true); err != nil {
			return err
		}
	} else if err := p.template(filepath.Join(dir, "config-v3.toml.tmpl"), main); err != nil {
		return err
	}
	err = p.own("/etc/rancher/"+p.Target+"/config.yaml.d/mica.yaml", "snapshotter: mica\n")
	return errors.Join(err, p.setMicad("", "containerd_address", RancherSocket),
		p.setMicad("remote", "config_path", filepath.Join(dir, "certs.d")))
}

// template plans the end of a template. The snapshotter stands in the base of it, which has it from
// config.yaml.
func (p *plan) template(path string, main conf.Table) error {
	text, err := p.read(path)
	if err != nil {
		return err
	}
	own := []string{conf.Transfer, "proxy_plugins.mica"}
	if p.BuildKit {
		own = append(own, "proxy_plugins."+conf.Alias)
	}
	if bytes.Contains(text, []byte(mark)) {
		if last := own[len(own)-1]; !bytes.Contains(text, []byte(last)) {
			return fmt.Errorf("%s was written without %s: say --undo first", path, last)
		}
		return nil
	}
	before := string(text)
	if text == nil {
		before = header + "{{ template \"base\" . }}\n"
	}
	for _, s := range own {
		if strings.Contains(before, s) {
			return fmt.Errorf("%s has a table %s of its own: take it out, or write what "+
				"containerd needs there (docs/config.md)", path, s)
		}
	}
	want, err := p.wanted(main, conf.Table{}, 3)
	if err != nil {
		return err
	}
	delete(want["plugins"].(conf.Table), conf.Images)
	b, err := marshal(want)
	if err != nil {
		return err
	}
	p.files[path] = fmt.Appendf(nil, "%s\n# Uses Mica's snapshotter.%s\n%s", before, mark, b)
	return nil
}

// nodeConfig is what nodeadm merges into containerd's configuration.
const nodeConfig = `apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  containerd:
    config: |
`

// eks plans what nodeadm, which writes containerd's configuration at each boot, has to be told.
func (p *plan) eks() error {
	want, err := p.fresh()
	if err != nil {
		return err
	}
	p.notes = append(p.notes, "nodeadm reads /etc/eks/nodeadm.d on this node, or in an AMI that is "+
		"made of it; a NodeConfig in user data may have the same lines")
	return p.own("/etc/eks/nodeadm.d/mica.yaml", "---\n"+nodeConfig+indent(want, 6))
}

// fresh is what a containerd has to be told whose configuration is written elsewhere, as kind's and
// nodeadm's, which discard unpacked layers.
func (p *plan) fresh() (string, error) {
	want, err := p.wanted(conf.Table{"plugins": conf.Table{conf.Images: conf.Table{
		"discard_unpacked_layers": true, "registry": conf.Table{"config_path": hostsDir}}}},
		conf.Table{}, 3)
	if err != nil {
		return "", err
	}
	if p.Target == "kind" { // its version 2 has the snapshotter elsewhere, and that wins
		plugins := want["plugins"].(conf.Table)
		plugins[conf.CRI] = conf.Table{"containerd": plugins[conf.Images]}
	}
	return marshal(want)
}

// kind prints a node's image and a cluster's configuration. Nothing is written: the configuration
// is the user's, and the nodes are made of it.
func (p *plan) kind() error {
	patch, err := p.fresh()
	if err != nil {
		return err
	}
	fmt.Fprintf(p.Out, `# An image for nodes; mica, micad and script/micad.service lie in this folder.
# docker build -t kind-mica -f - . <<end
FROM kindest/node
COPY mica micad /usr/local/bin/
COPY micad.service /etc/systemd/system/
RUN systemctl enable micad.service
# end

# The cluster: kind create cluster --image kind-mica --config FILE
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
containerdConfigPatches:
- |-
%s
# On the nodes of a cluster that runs: copy the three files there (docker cp), then
#   docker exec NODE sh -c 'systemctl enable --now micad && mica setup containerd --yes &&
#     systemctl restart containerd'
`, indent(patch, 2))
	return nil
}

func indent(text string, by int) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		if l != "\n" {
			b.WriteString(strings.Repeat(" ", by))
		}
		b.WriteString(l)
	}
	return b.String()
}
