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
	r, ref, size := fixture.ServedDebian(t, true)
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
		x.try(driver+": docker run", func() error {
			id, out, err := e.Run(ctx, ref)
			containers[driver] = id
			prints(t, driver, out)
			return err
		})
	}
	again := func(e *Engine, driver string) {
		t.Helper()
		if !slices.Contains(known, containers[driver]) {
			t.Errorf("the container of %s is gone", driver)
		}
		_, err := e.ContainerStart(ctx, containers[driver], client.ContainerStartOptions{})
		mustf(t, err, "start a container again")
	}
	with("overlayfs", func(e *Engine) {
		x.try("overlayfs: docker pull", func() error { return e.Pull(ctx, ref) })
		run(e, "overlayfs")
	})
	with("mica", func(e *Engine) {
		if len(known) > 0 {
			t.Errorf("overlayfs's containers are shown: %v", known)
		}
		run(e, "mica")
		x.try("mica: docker rmi, docker pull", func() error {
			if err := e.RemoveAll(ctx); err != nil {
				return err
			}
			return e.Pull(ctx, ref)
		})
		run(e, "mica")
	})
	with("overlayfs", func(e *Engine) {
		again(e, "overlayfs")
		run(e, "overlayfs")
	})
	with("mica", func(e *Engine) {
		again(e, "mica")
		run(e, "mica")
	})
	x.write("migration")
}
