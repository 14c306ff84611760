// Package doctor finds out what keeps images from being served lazily on a node: it reads
// containerd's configuration, tries the kernel, and asks micad and containerd. Each check adds its
// findings to one list, in order; nothing runs in parallel. Nothing is changed but by Forget.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/erofs"
)

// Finding is one thing that doctor looked at.
type Finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // "ok", "warning" or "error"
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

// Findings of one run, in the order of the checks.
type Findings []Finding

func (f *Findings) ok(check, detail string) { *f = append(*f, Finding{check, "ok", detail, ""}) }
func (f *Findings) warning(check, detail, fix string) {
	*f = append(*f, Finding{check, "warning", detail, fix})
}
func (f *Findings) failure(check, detail, fix string) {
	*f = append(*f, Finding{check, "error", detail, fix})
}

// ErrUnhealthy is returned after findings were printed of which one is an error.
var ErrUnhealthy = errors.New("something has to be changed before Mica works: see above")

// LimitsPage is docs/limits.md: what Mica does not do, and what helps.
const LimitsPage = "https://github.com/mica-snapshotter/mica/blob/main/docs/limits.md"

// Options of a check.
type Options struct {
	Config  string        // containerd's configuration file
	Address string        // micad's socket
	Micad   *admin.Client // of that socket
	Scratch string        // a folder to try mounts in
	Image   string        // full reference of one to look at; "": none
}

// Check looks at containerd's configuration, the kernel, micad, what containerd takes for unpacked,
// and an image.
func Check(ctx context.Context, o Options) Findings {
	var f Findings
	checkContainerd(&f, o.Config, o.Address)
	checkKernel(ctx, &f, o.Scratch)
	checkDaemon(ctx, &f, o)
	checkSnapshots(ctx, &f, o)
	if o.Image != "" {
		checkImage(ctx, &f, o.Micad, o.Image)
	}
	return f
}

// Print writes the findings as text or JSON. It returns ErrUnhealthy where one is an error.
func (f Findings) Print(w io.Writer, asJSON bool) error {
	if asJSON {
		if err := show.JSON(w, f); err != nil {
			return err
		}
	} else {
		for _, x := range f {
			fmt.Fprintf(w, "%-8s %s: %s\n", x.Status, x.Check, x.Detail)
			if x.Fix != "" {
				fmt.Fprintf(w, "%s\n", indent(x.Fix))
			}
		}
		fmt.Fprintln(w, "\nWhat Mica does not do, and what helps: "+LimitsPage)
	}
	if f.bad() {
		return ErrUnhealthy
	}
	return nil
}

// bad says whether one of the findings is an error.
func (f Findings) bad() bool {
	return slices.ContainsFunc(f, func(x Finding) bool { return x.Status == "error" })
}

// remapIDs compares what containerd thinks that micad does for user namespaces with what it does.
func (f *Findings) remapIDs(config string, info admin.Info) {
	c, err := loadContainerd(config)
	if err != nil {
		return // told already
	}
	for _, name := range c.names(info) {
		list, _ := c.at("proxy_plugins", name, "capabilities").([]any)
		advertised := slices.Contains(list, any("remap-ids"))
		switch {
		case advertised == info.RemapIDs:
		case advertised:
			f.failure("remap-ids", "containerd expects micad to map the IDs of user namespaces, "+
				"micad's remap_ids is false",
				"Set remap_ids = true in /etc/micad/config.toml and restart micad.")
		default:
			f.warning("remap-ids", "micad maps the IDs of user namespaces, and containerd does not "+
				"know: they would be mapped twice",
				"[proxy_plugins."+name+"]\n  capabilities = [\"remap-ids\"]"+restartHint)
		}
	}
}

// exports compares the root that containerd tells the kubelet with micad's.
func (f *Findings) exports(config, root string) {
	c, err := loadContainerd(config)
	if err != nil {
		return // told already
	}
	told, _ := c.at("proxy_plugins", "mica", "exports", "root").(string)
	if told == "" || filepath.Clean(told) == filepath.Clean(root) {
		return
	}
	a, aErr := os.Stat(told)
	if b, err := os.Stat(root); err == nil && aErr == nil && os.SameFile(a, b) {
		return
	}
	f.warning("exports",
		fmt.Sprintf("proxy_plugins.mica.exports.root is %s, micad's root is %s: the kubelet "+
			"watches the wrong file system for free space", told, root),
		fmt.Sprintf("[proxy_plugins.mica.exports]\n  root = %q", root)+restartHint)
}

func indent(text string) string {
	return "           " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n           ")
}

func checkDaemon(ctx context.Context, f *Findings, o Options) {
	var info admin.Info
	if err := o.Micad.Get(ctx, admin.PathInfo, &info); err != nil {
		f.failure("micad", err.Error(), "")
		return
	}
	who := fmt.Sprintf("version %s, pid %d, root %s; ", info.Version, info.PID, info.Root)
	switch erofs.Mode(info.Lazy) {
	case erofs.ModeErofs, erofs.ModeFuse, erofs.ModeLocal:
		f.ok("micad", who+fmt.Sprintf("lazy layers by %s, complete ones by %s", info.Lazy,
			info.Complete))
	default: // it says why
		f.failure("micad", who+"no layer is served, containerd pulls all: "+info.Lazy, "")
	}
	f.remapIDs(o.Config, info)
	f.content(o.Config, info)
	f.buildKit(o.Config, o.Address, info)
	f.exports(o.Config, info.Root)
	f.pulls(o.Config, info)
	if info.Unlabelled > 0 {
		f.warning("annotations",
			fmt.Sprintf("containerd prepared %d layers without naming their image",
				info.Unlabelled),
			"Its image was loaded or built on this node, or micad cannot ask containerd "+
				"(containerd_address), or the port of its registry is not known: see micad's log.")
	}
	var fallbacks []admin.Fallback
	if err := o.Micad.Get(ctx, admin.PathFallbacks, &fallbacks); err != nil {
		f.failure("micad", err.Error(), "")
		return
	}
	for _, x := range fallbacks {
		if x.Whole != nil {
			continue // it lacks an index, say, and no more
		}
		f.warning("lazy", fmt.Sprintf("%s was pulled by containerd, not served lazily", x.Ref),
			x.Reason)
	}
}
