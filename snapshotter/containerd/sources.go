package containerd

import (
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/reference"
)

// locators returns the registry and repository of each of the names that is of a repository at this
// host, whichever port the registry has.
func locators(names []string, host, repository string) []string {
	var found []string
	for _, name := range names {
		spec, err := reference.Parse(name)
		if err != nil {
			continue
		}
		u, err := url.Parse("dummy://" + spec.Locator)
		if err != nil || u.Hostname() != host || strings.TrimPrefix(u.Path, "/") != repository {
			continue
		}
		if !slices.Contains(found, spec.Locator) {
			found = append(found, spec.Locator)
		}
	}
	return found
}
