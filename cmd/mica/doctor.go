package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// finding is one thing that doctor looked at.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // "ok", "warning" or "error"
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

// findings of one run, in the order of the checks.
type findings []finding

func (f *findings) ok(check, detail string) { *f = append(*f, finding{check, "ok", detail, ""}) }
func (f *findings) warning(check, detail, fix string) {
	*f = append(*f, finding{check, "warning", detail, fix})
}
func (f *findings) failure(check, detail, fix string) {
	*f = append(*f, finding{check, "error", detail, fix})
}

// errUnhealthy is returned after the findings were printed.
var errUnhealthy = errors.New("something has to be changed before Mica works: see above")

// limitsPage is docs/limits.md.
const limitsPage = "https://github.com/mica-snapshotter/mica/blob/main/docs/limits.md"

func doctorCommand() *cobra.Command {
	var address, config, scratch string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check containerd's configuration, the kernel and micad",
		Long: "Check containerd's configuration, the kernel and micad.\n\n" +
			"What Mica does not do, and what helps, is told at\n" + limitsPage + ":\n" +
			"export, save, convert and pushes to another registry, for instance, need a lazy " +
			"image's blobs\n" +
			"in containerd's content store (mica fetch).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var f findings
			address = socketPath(address)
			checkContainerd(&f, config, address)
			checkKernel(cmd.Context(), &f, scratch)
			checkDaemon(cmd.Context(), &f, daemon(address), config)
			checkSnapshots(cmd.Context(), &f, config)
			return f.print(cmd.OutOrStdout(), asJSON)
		},
	}
	addAddress(cmd, &address)
	cmd.Flags().StringVar(&config, "containerd-config", "/etc/containerd/config.toml",
		"containerd's configuration file")
	cmd.Flags().StringVar(&scratch, "scratch", "/var/lib/micad",
		"folder to try mounts in, on the filesystem that micad's root is on")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (f findings) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if err := e.Encode(f); err != nil {
			return err
		}
	}
	bad := false
	for _, x := range f {
		bad = bad || x.Status == "error"
		if asJSON {
			continue
		}
		fmt.Fprintf(w, "%-8s %s: %s\n", x.Status, x.Check, x.Detail)
		if x.Fix != "" {
			fmt.Fprintf(w, "%s\n", indent(x.Fix))
		}
	}
	if !asJSON {
		fmt.Fprintln(w, "\nWhat Mica does not do, and what helps: "+limitsPage)
	}
	if bad {
		return errUnhealthy
	}
	return nil
}

// remapIDs compares what containerd thinks that micad does for user namespaces with what it does.
func (f *findings) remapIDs(config string, info admin.Info) {
	c, err := loadContainerd(config)
	if err != nil {
		return // told already
	}
	list, _ := c.at("proxy_plugins", "mica", "capabilities").([]any)
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
			"[proxy_plugins.mica]\n  capabilities = [\"remap-ids\"]"+restartHint)
	}
}

// exports compares the root that containerd tells the kubelet with micad's.
func (f *findings) exports(config, root string) {
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

func checkDaemon(ctx context.Context, f *findings, c *admin.Client, config string) {
	var info admin.Info
	if err := c.Get(ctx, admin.PathInfo, &info); err != nil {
		f.failure("micad", err.Error(), "")
		return
	}
	f.ok("micad", fmt.Sprintf("version %s, pid %d, root %s; lazy layers by %s, complete ones by %s",
		info.Version, info.PID, info.Root, info.Lazy, info.Complete))
	f.remapIDs(config, info)
	f.content(config, info)
	f.exports(config, info.Root)
	if info.Unlabelled > 0 {
		f.warning("annotations",
			fmt.Sprintf("containerd prepared %d layers without naming their image",
				info.Unlabelled),
			"Its image was loaded or built on this node, or micad cannot ask containerd "+
				"(containerd_address), or the port of its registry is not known: see micad's log.")
	}
	var fallbacks []admin.Fallback
	if err := c.Get(ctx, admin.PathFallbacks, &fallbacks); err != nil {
		f.failure("micad", err.Error(), "")
		return
	}
	for _, x := range fallbacks {
		f.warning("lazy", fmt.Sprintf("%s was pulled by containerd, not served lazily", x.Ref),
			x.Reason)
	}
}
