// Package soak mistreats nodes for minutes, under load, and looks for what is
// left behind. `make soak` takes the times that the issue of reliability names;
// `make test` runs the same tests for seconds.
package soak

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/integration/node"
)

// Traces are what a node's micad holds.
type Traces struct {
	Mounts     []string // mount points below its root
	Files      []string // below its root, without what is mounted, its profiles and its database
	MicadFDs   int
	KeeperFDs  int
	Goroutines int
}

// Look takes the traces of a node whose micad runs under a keeper.
func Look(ctx context.Context, n *node.Node) (Traces, error) {
	var t Traces
	var errs [4]error
	t.Mounts, errs[0] = node.Mounts(n.MicadRoot())
	t.Files, errs[1] = files(n.MicadRoot(), t.Mounts)
	t.MicadFDs, errs[2] = descriptors(n.MicadPID())
	t.KeeperFDs, errs[3] = descriptors(n.KeeperPID())
	if err := errors.Join(errs[:]...); err != nil {
		return t, err
	}
	var err error
	t.Goroutines, err = metric(ctx, n.MicadAddress(), "go_goroutines")
	return t, err
}

// slack is how many descriptors and goroutines come and go with answers to
// metrics and timers.
const slack = 8

// More says what t has that an earlier look had not; "": nothing.
func (t Traces) More(before Traces) string {
	var all []string
	for _, m := range t.Mounts {
		if !slices.Contains(before.Mounts, m) {
			all = append(all, "mount "+m)
		}
	}
	for _, f := range t.Files {
		if !slices.Contains(before.Files, f) {
			all = append(all, "file "+f)
		}
	}
	if t.MicadFDs > before.MicadFDs+slack {
		all = append(all, fmt.Sprintf("micad has %d descriptors, had %d", t.MicadFDs, before.MicadFDs))
	}
	if t.KeeperFDs > before.KeeperFDs {
		all = append(all, fmt.Sprintf("its keeper has %d descriptors, had %d", t.KeeperFDs, before.KeeperFDs))
	}
	if t.Goroutines > before.Goroutines+slack {
		all = append(all, fmt.Sprintf("micad has %d goroutines, had %d", t.Goroutines, before.Goroutines))
	}
	return strings.Join(all, "; ")
}

func descriptors(pid int) (int, error) {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(list), err
}

func files(root string, mounts []string) ([]string, error) {
	var list []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case slices.Contains(mounts, path) && path != root, d.Name() == "profiles":
			return fs.SkipDir
		}
		if name := strings.TrimPrefix(path, root); !strings.HasPrefix(name, "/metadata") {
			list = append(list, name)
		}
		return nil
	})
	return list, err
}

// metric reads one of micad's metrics.
func metric(ctx context.Context, address, name string) (int, error) {
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", address)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://micad"+admin.PathMetrics, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.Atoi(value)
		}
	}
	return 0, errors.Join(lines.Err(), fmt.Errorf("no metric %s", name))
}
