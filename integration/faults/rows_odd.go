package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mica-snapshotter/mica/integration/registry"
)

// oddRegistries are the rows of registries that do what clients must put up with.
func oddRegistries() []Fault {
	return []Fault{
		answers("registry ignores ranges", registry.Fault{Whole: true}),
		redirectsToHTTP(),
	}
}

// redirectsToHTTP is a registry with TLS that keeps its blobs at a host without.
func redirectsToHTTP() Fault {
	var secure *registry.Secure
	return Fault{
		Name: "https registry redirects to http", Hold: outage,
		Prepare: func(_ context.Context, s *Stage) error {
			secure = s.Registry.Secure()
			s.undo = append(s.undo, secure.Close)
			dir := filepath.Join(s.Node.HostsDir(), s.Host)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			hosts := fmt.Sprintf("server = \"https://%s\"\nskip_verify = true\n", secure.Host())
			return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644)
		},
		Strike: func(context.Context, *Stage) error { secure.RedirectBlobs(true); return nil },
		Lift:   func(context.Context, *Stage) error { secure.RedirectBlobs(false); return nil },
	}
}
