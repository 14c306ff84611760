package main

import (
	"fmt"
	"runtime"
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
	{"region", "10 ms, 1 Gbit/s, 60 MB/s a connection",
		shaper.Profile{RTT: 10 * time.Millisecond, Rate: 125e6, ConnRate: 60e6}},
	{"far", "50 ms, 25 MB/s", shaper.Profile{RTT: 50 * time.Millisecond, Rate: 25e6}},
	{"rack", "1 ms, 1 GB/s", shaper.Profile{RTT: time.Millisecond, Rate: 1e9}},
}

// way is a way to get from nothing to a program that is ready.
type way struct {
	name        string
	about       string
	snapshotter string // containerd's name
	beside      beside
	read        bool   // in place of the image's program, read every byte of the image
	containerd  string // more of containerd's configuration, TOML
}

// beside is what stands beside an image at the registry.
type beside int

const (
	nothing beside = iota
	indexed
	profiled // index and profile
)

// erofsDiffer makes containerd unpack layers into EROFS images (mkfs.erofs)
// for its EROFS snapshotter, as containerd's documentation asks for.
var erofsDiffer = `
[plugins.'io.containerd.service.v1.diff-service']
default = ['erofs', 'walking']
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux/` + runtime.GOARCH + `'
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
	{name: "erofs", about: "containerd's EROFS snapshotter", snapshotter: "erofs",
		containerd: erofsDiffer},
	{name: "mica", about: "Mica, an index and no profile", snapshotter: node.Snapshotter,
		beside: indexed},
	{name: micaProfile, about: "Mica, an index and a profile", snapshotter: node.Snapshotter,
		beside: profiled},
	{name: overlayfsRead, about: "overlayfs, every byte of the image is read",
		snapshotter: "overlayfs", read: true},
	{name: micaRead, about: "Mica without a profile, every byte of the image is read",
		snapshotter: node.Snapshotter, beside: indexed, read: true},
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
	for _, v := range all {
		if i := slices.Index(want, name(v)); i >= 0 {
			found = append(found, v)
			want = slices.Delete(want, i, i+1)
		}
	}
	if len(want) > 0 {
		return nil, fmt.Errorf("there is no %s, only %s", strings.Join(want, " and no "),
			names(all, name))
	}
	return found, nil
}

func names[T any](all []T, name func(T) string) string {
	list := make([]string, len(all))
	for i, v := range all {
		list[i] = name(v)
	}
	return strings.Join(list, ", ")
}

func (w workload) id() string { return w.name }
func (n network) id() string  { return n.name }
func (y way) id() string      { return y.name }

// plan is what is measured.
type plan struct {
	workloads []workload
	networks  []network
	ways      []way
}

func (f flags) plan() (p plan, err error) {
	if f.runs < 0 {
		return p, fmt.Errorf("%d runs", f.runs)
	}
	if p.workloads, err = chosen(workloads, workload.id, f.workloads); err != nil {
		return p, err
	}
	if p.networks, err = chosen(networks, network.id, f.networks); err != nil {
		return p, err
	}
	p.ways, err = chosen(ways, way.id, f.ways)
	return p, err
}

// rows names what there are medians of: the ways, and the second start of the
// image that overlayfs has pulled.
func (p plan) rows() []string {
	var names []string
	for _, y := range p.ways {
		names = append(names, y.name)
		if y.name == overlayfs {
			names = append(names, again)
		}
	}
	return names
}
