//go:build docker

package clients

import (
	"slices"
	"testing"

	"github.com/moby/moby/client"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestMigration: dockerd's folder is one, whatever the storage driver. Images are there with each,
// containers with their own.
func TestMigration(t *testing.T) {
	r, ref, size := debian(t)
	ctx := fixture.Context(t)
	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true})
	containers := map[string]string{}
	var known []string // containers
	with := func(driver string, do func(e *Engine)) {
		t.Helper()
		e, err := StartEngine(ctx, n, driver)
		mustf(t, err, "dockerd")
		defer func() { mustf(t, e.Close(), "dockerd") }()
		all, err := e.ContainerList(ctx, client.ContainerListOptions{All: true})
		mustf(t, err, "containers")
		known = nil
		for _, c := range all.Items {
			known = append(known, c.ID)
		}
		do(e)
	}
	x := &table{t: t, r: r, size: size}
	run := func(e *Engine, driver string) {
		t.Helper()
		x.try(driver+" run", func() error {
			id, out, err := e.Run(ctx, ref)
			containers[driver] = id
			prints(t, driver, out)
			return err
		})
	}
	with("overlayfs", func(e *Engine) {
		x.try("pull", func() error { return e.Pull(ctx, ref) })
		run(e, "overlayfs")
	})
	with("mica", func(e *Engine) {
		t.Log("with mica:", known)
		run(e, "mica")
		x.try("remove, pull", func() error {
			if err := e.RemoveAll(ctx); err != nil {
				return err
			}
			return e.Pull(ctx, ref)
		})
		run(e, "mica")
	})
	with("overlayfs", func(e *Engine) {
		t.Log("with overlayfs again:", known)
		if !slices.Contains(known, containers["overlayfs"]) {
			t.Error("the container of overlayfs is gone")
		}
		run(e, "overlayfs")
	})
	with("mica", func(e *Engine) {
		t.Log("with mica again:", known)
		if !slices.Contains(known, containers["mica"]) {
			t.Error("the container of mica is gone")
		}
		run(e, "mica")
	})
	t.Log("\n" + x.rows.String())
}
