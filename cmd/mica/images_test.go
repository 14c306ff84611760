package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// TestTellingNames: names that are digests alone are left out where there is another.
func TestTellingNames(t *testing.T) {
	sum := strings.Repeat("0123456789abcdef", 4)
	id, digested := "sha256:"+sum, "docker.io/library/redis@sha256:"+sum
	for _, c := range []struct{ in, want []string }{
		{[]string{id, digested, "docker.io/library/redis:7"}, []string{"docker.io/library/redis:7"}},
		{[]string{"b.test/x:1", "a.test/x:1"}, []string{"a.test/x:1", "b.test/x:1"}},
		{[]string{id, digested}, []string{digested, id}},
		{[]string{"import-2024-01-01", id}, []string{"import-2024-01-01"}},
	} {
		if got := tellingNames(c.in); !slices.Equal(got, c.want) {
			t.Errorf("of %q are told %q, want %q", c.in, got, c.want)
		}
	}
}

// TestImageBelow: a container is the user of the nearest image that it lies on, with a snapshot
// between them as docker makes one, and of no image on whose layers that one lies.
func TestImageBelow(t *testing.T) {
	all := map[string]snapshots.Info{
		"base": {}, "top": {Parent: "base"}, "c-init": {Parent: "top"}, "alone": {},
	}
	base, top := &imageStatus{}, &imageStatus{}
	chains := map[string]*imageStatus{"base": base, "top": top}
	for parent, want := range map[string]*imageStatus{
		"top": top, "c-init": top, "base": base, "alone": nil, "": nil, "gone": nil,
	} {
		if got := imageBelow(all, chains, parent); got != want {
			t.Errorf("on %q: %p, want %p", parent, got, want)
		}
	}
}

// TestImagesTable: a row says how the layers are there, how much of them, and who uses them.
func TestImagesTable(t *testing.T) {
	layers := func(states ...string) (all []layerStatus) {
		for _, s := range states {
			all = append(all, layerStatus{State: s})
		}
		return all
	}
	id := strings.Repeat("0123456789abcdef", 4)
	var out strings.Builder
	err := printImages(&out, "mica", []*imageStatus{
		{Names: []string{"a:1", "a:latest"}, Namespace: "default", Snapshotter: "mica",
			Layers: layers("lazy", "whole", "lazy"), Size: 200e6, Present: 50e6,
			UsedBy: []string{id, "p", "x", "y", "z"}},
		{Names: []string{"b:1"}, Namespace: "moby", Snapshotter: "overlayfs",
			Layers: layers("ordinary"), Size: 100e6, Present: 100e6},
		{Names: []string{"c:1"}, Namespace: "moby"},
	})
	want := `IMAGE     NAMESPACE  LAYERS                  SIZE      ON NODE          USED BY
a:1       default    2 lazy, 1 whole         200.0 MB  50.0 MB (25%)    0123456789ab, p, x, and 2 more
a:latest  default    the same                                           
b:1       moby       1 ordinary (overlayfs)  100.0 MB  100.0 MB (100%)  -
c:1       moby       not unpacked            -         -                -
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
}

// TestContainerName: pods and nerdctl's names are told in place of IDs.
func TestContainerName(t *testing.T) {
	for want, labels := range map[string]map[string]string{
		"id":      nil,
		"web/app": {"io.kubernetes.pod.name": "web", "io.kubernetes.container.name": "app"},
		"db":      {"nerdctl/name": "db"},
	} {
		if got := admin.ContainerName("id", labels); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := admin.ContainerName("id", map[string]string{"io.kubernetes.pod.name": "web"}); got !=
		"web/pause" {
		t.Errorf("a sandbox is %q", got)
	}
}
