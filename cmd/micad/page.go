package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/page"
	"github.com/mica-snapshotter/mica/fs/cache"
)

// usageEvery is how often the disk, and containerd, are asked for a page that is open: each layer is
// opened, which takes 40 ms for 1,000 layers.
const usageEvery = 10 * time.Second

// usage is what layers take and who uses them, as it was at a time.
type usage struct {
	mu     sync.Mutex
	at     time.Time
	layers []cache.Usage
	users  map[string][]string
	labels map[string]map[string]string // of containers, by ID
}

// page returns the handler of micad's page.
func (d *daemon) page() http.Handler {
	node, err := os.Hostname()
	if err != nil {
		node = "this node"
	}
	known := &usage{}
	return page.New(func(ctx context.Context) page.State {
		s := page.State{
			Now: time.Now(), Node: node, Info: d.info(), Received: d.client.Stats().BytesDown,
			Layers: d.table.Status(), Cache: d.table.Cache().Status(),
			Replays: d.table.Replays(), Starts: d.starts.Latest(),
			Fallbacks: d.fallbacks(), Problems: d.problems.Latest(),
		}
		known.look(ctx, d)
		known.mu.Lock()
		defer known.mu.Unlock()
		labels := known.labels
		s.Usage, s.Users = known.layers, known.users
		s.Name = func(key string) string {
			id := key[strings.LastIndexByte(key, '/')+1:]
			return admin.ContainerName(id, labels[id])
		}
		return s
	})
}

// look asks again if that is due. What is not known stays as it was.
func (u *usage) look(ctx context.Context, d *daemon) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.at) < usageEvery {
		return
	}
	layers, err := d.table.Cache().Usage(ctx)
	if err != nil {
		return
	}
	u.layers, u.at = layers, time.Now()
	if users, err := d.snapshotter.Users(ctx); err == nil {
		u.users = users
	}
	if d.containerd != nil {
		if labels, err := d.containerd.Containers(ctx); err == nil {
			u.labels = labels
		}
	}
}

// servePage is the page over TCP.
func (d *daemon) servePage(address string) http.Handler {
	host, _, _ := net.SplitHostPort(address) // it was checked
	return page.Guard(d.page(), host)
}
