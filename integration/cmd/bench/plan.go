package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// network is a path to the registry.
type network struct {
	name    string
	about   string
	profile shaper.Profile
}

var networks = []network{
	{"region", "10 ms, 1 Gbit/s, 60 MB/s a connection", shaper.Profile{RTT: 10 * time.Millisecond, Rate: 125e6, ConnRate: 60e6}},
	{"far", "50 ms, 25 MB/s", shaper.Profile{RTT: 50 * time.Millisecond, Rate: 25e6}},
	{"rack", "1 ms, 1 GB/s", shaper.Profile{RTT: time.Millisecond, Rate: 1e9}},
}

// way is a way to get from nothing to a program that is ready.
type way struct {
	name        string
	about       string
	snapshotter string // containerd's name
	published   published
	read        bool   // in place of the image's program, read every byte of the image
	containerd  string // more of containerd's configuration, TOML
}

// published is what stands beside an image at the registry.
type published int

const (
	nothing published = iota
	indexed
	profiled // index and profile
)

// erofsDiffer makes containerd unpack layers into EROFS images (mkfs.erofs)
// for its EROFS snapshotter, as containerd's documentation asks for.
const erofsDiffer = `
[plugins.'io.containerd.service.v1.diff-service']
default = ['erofs', 'walking']
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux'
snapshotter = 'erofs'
differ = 'erofs'
`

const (
	overlayfs     = "overlayfs"
	again         = "again" // measured on the node of overlayfs, and part of B
	micaProfile   = "mica-profile"
	overlayfsRead = "overlayfs-read"
	micaRead      = "mica-read"
)

// ways in the order in which they take turns.
var ways = []way{
	{name: overlayfs, about: "containerd's overlayfs snapshotter", snapshotter: "overlayfs"},
	{name: "erofs", about: "containerd's EROFS snapshotter", snapshotter: "erofs", containerd: erofsDiffer},
	{name: "mica", about: "Mica, an index and no profile", snapshotter: node.Snapshotter, published: indexed},
	{name: micaProfile, about: "Mica, an index and a profile", snapshotter: node.Snapshotter, published: profiled},
	{name: overlayfsRead, about: "overlayfs, every byte of the image is read", snapshotter: "overlayfs", read: true},
	{name: micaRead, about: "Mica without a profile, every byte of the image is read", snapshotter: node.Snapshotter, published: indexed, read: true},
}

// readAll is the program of the ways that read everything. -xdev keeps it to the image.
const readAll = `echo started
find / -xdev -type f -print0 | xargs -0 -r cat >/dev/null || exit 1
find / -xdev -type f | wc -l
echo ready`

// chosen returns those of all that a comma-separated list names, in the order
// of all; "" names every one.
func chosen[T any](all []T, name func(T) string, list string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	want := strings.Split(list, ",")
	var found []T
	var names []string
	for _, v := range all {
		names = append(names, name(v))
		if slices.Contains(want, name(v)) {
			found = append(found, v)
		}
	}
	for _, w := range want {
		if !slices.Contains(names, w) {
			return nil, fmt.Errorf("there is no %q, only %s", w, strings.Join(names, ", "))
		}
	}
	return found, nil
}
