package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// registryName is a name that no server of names knows (RFC 2606).
const registryName = "registry.mica.invalid"

// hostsFile is where names are looked up first. Programs written in Go look at
// it anew after hostsCached (net/hosts.go: cacheMaxAge).
const (
	hostsFile   = "/etc/hosts"
	hostsCached = 5 * time.Second
)

// nameGone loses the registry's name: it cannot be looked up any more, and the
// connections that were there are cut.
func nameGone() Fault {
	var names *hosts // of the one node that the row has
	return Fault{
		Name: "name of the registry gone", Hold: hostsCached + outage,
		Prepare: func(_ context.Context, s *Stage) error {
			_, port, err := net.SplitHostPort(s.Host)
			if err != nil {
				return err
			}
			s.Host = net.JoinHostPort(registryName, port)
			if err := s.Node.Trust(s.Host); err != nil {
				return err
			}
			if names, err = openHosts(s.dir); err != nil {
				return err
			}
			s.undo = append(s.undo, names.close)
			return names.set(true)
		},
		Strike: func(_ context.Context, s *Stage) error {
			err := errors.Join(names.set(false), s.Registry.Down())
			time.Sleep(hostsCached) // until then the name might still be found
			return errors.Join(err, s.Registry.Up())
		},
		Lift: func(context.Context, *Stage) error { return names.set(true) },
	}
}

// hosts is a file that lies over /etc/hosts while it is open.
type hosts struct {
	path     string
	original string
}

func openHosts(dir string) (*hosts, error) {
	original, err := os.ReadFile(hostsFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	h := &hosts{path: filepath.Join(dir, "hosts"),
		original: strings.TrimRight(string(original), "\n") + "\n"}
	if err := os.WriteFile(h.path, original, 0o644); err != nil {
		return nil, err
	}
	if err := unix.Mount(h.path, hostsFile, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount over %s: %w", hostsFile, err)
	}
	return h, nil
}

// set puts the registry's name into the file, or takes it out.
func (h *hosts) set(there bool) error {
	text := h.original
	if there {
		text += "127.0.0.1 " + registryName + "\n"
	}
	return os.WriteFile(h.path, []byte(text), 0o644)
}

func (h *hosts) close() error { return unix.Unmount(hostsFile, unix.MNT_DETACH) }
