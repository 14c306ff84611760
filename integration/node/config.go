package node

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
)

// Snapshotter is the name under which containerd knows Mica here.
const Snapshotter = "mica"

// Builder is the name under which it does for BuildKit.
const Builder = "stargz"

// containerdConfig is containerd's config.toml, version 3, for this node.
func (n *Node) containerdConfig() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("version = 3")
	p("root = %q", filepath.Join(n.Dir, "containerd"))
	p("state = %q", filepath.Join(n.Dir, "state"))
	disabled := []string{"io.containerd.nri.v1.nri"}
	if n.opts.Traces == "" {
		disabled = append(disabled, "io.containerd.tracing.processor.v1.otlp",
			"io.containerd.internal.v1.tracing")
	}
	if n.opts.CRI == nil {
		disabled = append(disabled, "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
			"io.containerd.podsandbox.controller.v1.podsandbox")
	}
	if n.opts.Content {
		disabled = append(disabled, "io.containerd.content.v1.content")
	}
	p("disabled_plugins = [%s]", quoted(disabled))
	p("[grpc]\naddress = %q", n.Address())
	p("[ttrpc]\naddress = %q", n.Address()+".ttrpc")
	p("[plugins.'io.containerd.internal.v1.opt']\npath = %q", filepath.Join(n.Dir, "opt"))
	// a collection starts as soon as something was deleted
	p("[plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 1\nschedule_delay = '0s'\nstartup_delay = '0s'")
	p("[plugins.'io.containerd.transfer.v1.local']")
	p("config_path = %q", n.HostsDir())
	unpackers, exports := []string{"overlayfs", Snapshotter}, "enable_remote_snapshot_annotations = 'true'"
	if n.opts.Bare || n.opts.Setup {
		unpackers, exports = nil, ""
	}
	for _, name := range unpackers {
		p("[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/%s'\nsnapshotter = %q", runtime.GOARCH, name)
	}
	if !n.opts.Setup {
		p("[proxy_plugins.%s]\ntype = 'snapshot'\naddress = %q\ncapabilities = ['remap-ids']", Snapshotter, n.MicadAddress())
		p("[proxy_plugins.%s.exports]\n%s\nroot = %q", Snapshotter, exports, n.MicadRoot())
	}
	if n.opts.Content {
		p("[proxy_plugins.mica-content]\ntype = 'content'\naddress = %q", n.MicadAddress())
	}
	if n.opts.BuildKit && !n.opts.Setup {
		p("[proxy_plugins.%s]\ntype = 'snapshot'\naddress = %q\ncapabilities = ['remap-ids']", Builder, n.BuilderAddress())
	}
	if c := n.opts.CRI; c != nil {
		p("%s", c.config(n))
	}
	p("%s", n.opts.Containerd)
	return b.String()
}

// micadConfig is micad's config file for this node.
func (n *Node) micadConfig() string {
	var b strings.Builder
	if n.opts.Mode != "" {
		fmt.Fprintf(&b, "mode = %q\n", n.opts.Mode)
	}
	if !strings.Contains(n.opts.Micad, "containerd_address") {
		fmt.Fprintf(&b, "containerd_address = %q\n", n.Address())
	}
	if n.opts.Content {
		fmt.Fprintf(&b, "content_store = %q\n", n.ContentRoot())
	}
	fmt.Fprintf(&b, "%s\n", n.opts.Micad)
	if n.opts.DemandOnly {
		b.WriteString("[fetch]\nfill = \"none\"\n")
	}
	if n.opts.BuildKit {
		fmt.Fprintf(&b, "[buildkit]\nsocket = %q\n", n.BuilderAddress())
	}
	fmt.Fprintf(&b, "[remote]\nconfig_path = %q\n%s\n", n.HostsDir(), n.opts.MicadRemote)
	if c := n.opts.CRI; c != nil && c.ByMicad {
		fmt.Fprintf(&b, "[credentials]\ncri_image_service = %q\n", n.Address())
	}
	return b.String()
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(q, ", ")
}
