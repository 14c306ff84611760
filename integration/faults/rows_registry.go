package faults

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mica-snapshotter/mica/integration/registry"
)

// outage is how long faults of the registry last here; the soak has one of minutes.
const outage = 2 * time.Second

// answers is a registry that meets every request with a fault.
func answers(name string, f registry.Fault) Fault {
	return Fault{
		Name: name, Hold: outage,
		Strike: func(_ context.Context, s *Stage) error {
			s.rules(func(*http.Request, int64) registry.Fault { return f })
			return nil
		},
		Lift: func(_ context.Context, s *Stage) error {
			s.rules(nil)
			return nil
		},
	}
}

// registryFaults are the rows of a registry, and of the way to it, that fails for a while.
func registryFaults() []Fault {
	return []Fault{
		{
			Name: "registry down", Hold: outage,
			Strike: func(_ context.Context, s *Stage) error { return s.Registry.Down() },
			Lift:   func(_ context.Context, s *Stage) error { return s.Registry.Up() },
		},
		answers("registry resets connections", registry.Fault{Reset: true, Cut: 1000}),
		answers("registry truncates bodies", registry.Fault{Truncate: true, Cut: 1000}),
		answers("registry is slow", registry.Fault{Delay: 500 * time.Millisecond, Rate: 100_000}),
		answers("registry answers 401", registry.Fault{Status: http.StatusUnauthorized}),
		answers("registry answers 403", registry.Fault{Status: http.StatusForbidden}),
		answers("registry answers 404", registry.Fault{Status: http.StatusNotFound}),
		answers("registry answers 429",
			registry.Fault{Status: http.StatusTooManyRequests, RetryAfter: "1"}),
		answers("registry answers 500", registry.Fault{Status: http.StatusInternalServerError}),
		answers("registry answers HTML", registry.Fault{Page: true}),
		answers("registry sends wrong bytes", registry.Fault{Flip: true}),
		answers("registry sends another range", registry.Fault{WrongRange: true}),
		nameGone(),
		{
			Name: "token expires", Hold: outage / 4,
			Prepare: func(_ context.Context,
				s *Stage) error {
				s.Registry.ExpireTokens()
				return nil
			},
			Strike: func(_ context.Context,
				s *Stage) error {
				s.Registry.ExpireTokens()
				return nil
			},
		},
		mirrorDown(),
		originDown(),
		listsBroken(),
	}
}

// listsBroken is a registry that answers all but what its index is looked for with, for longer than
// it is looked for.
func listsBroken() Fault {
	broken := registry.Fault{Status: http.StatusBadGateway}
	return Fault{
		Name: "referrers broken", Hold: 3 * outage,
		Strike: func(_ context.Context, s *Stage) error {
			s.rules(func(q *http.Request, _ int64) registry.Fault {
				if strings.Contains(q.URL.Path, "/referrers/") ||
					strings.Contains(q.URL.Path, "/manifests/sha256-") {
					return broken
				}
				return registry.Fault{}
			})
			return nil
		},
		Lift: func(_ context.Context, s *Stage) error {
			s.rules(nil)
			return nil
		},
	}
}

// mirrorDown loses the mirror that everything comes from; the registry has it too.
func mirrorDown() Fault {
	return Fault{
		Name: "mirror down", Hold: outage, Prepare: mirrored,
		Strike: func(_ context.Context, s *Stage) error { return s.Mirror.Down() },
		Lift:   func(_ context.Context, s *Stage) error { return s.Mirror.Up() },
	}
}

// originDown loses the registry, of which there is a mirror, for longer than a pull may take.
func originDown() Fault {
	return Fault{
		Name: "origin down, mirror up", Hold: 3 * outage, Prepare: mirrored,
		Strike: func(_ context.Context, s *Stage) error { return s.Registry.Down() },
		Lift:   func(_ context.Context, s *Stage) error { return s.Registry.Up() },
	}
}

// mirrored puts a mirror before the registry.
func mirrored(_ context.Context, s *Stage) error {
	mirror, err := s.Registry.Front()
	if err != nil {
		return err
	}
	s.undo = append(s.undo, mirror.Close)
	s.Mirror = mirror
	dir := filepath.Join(s.Node.HostsDir(), s.Host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	hosts := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n"+
		"capabilities = [\"pull\", \"resolve\"]\n", s.Host, mirror.Host())
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644)
}
