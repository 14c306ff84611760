package containerd

import (
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/reference"
)

// located is a registry and a repository, as the name of an image names them.
type located struct {
	registry   string // with its port, if it has one
	host       string // without
	repository string
}

// parseName takes the name of an image apart; ok is false where it is none.
func parseName(name string) (l located, ok bool) {
	spec, err := reference.Parse(name)
	if err != nil {
		return located{}, false
	}
	u, err := url.Parse("dummy://" + spec.Locator)
	if err != nil {
		return located{}, false
	}
	return located{u.Host, u.Hostname(), strings.TrimPrefix(u.Path, "/")}, true
}

// locators returns the registry and repository of each of the names that is of a repository at this
// host, whichever port the registry has.
func locators(names []string, host, repository string) []string {
	var found []string
	for _, name := range names {
		l, ok := parseName(name)
		if at := l.registry + "/" + repository; ok && l.host == host &&
			l.repository == repository &&
			!slices.Contains(found, at) {
			found = append(found, at)
		}
	}
	return found
}

// locateAll returns a repository's references, with the port that the registry has in the names of
// the same repository's images, or else in those of the host's other images and in containerd's
// config_path, where these agree. Where there are none, guess says to take the usual port for a
// host that has a name of the kind that registries at that port have.
func (c *Client) locateAll(names []string, host, repository string, guess bool) []string {
	if host == dockerHub {
		return []string{host + "/" + repository}
	}
	found := locators(names, host, repository)
	if len(found) > 0 {
		return found
	}
	registries := registriesOf(names, c.configPath, host)
	switch {
	case len(registries) == 1:
		return []string{registries[0] + "/" + repository}
	case len(registries) == 0 && guess && strings.Contains(host, ".") && net.ParseIP(host) == nil:
		return []string{host + "/" + repository}
	}
	return nil
}

// registriesOf returns the registries at a host: those that the names of images have, whichever
// repositories they are of, and that containerd has a folder for below its config_path.
func registriesOf(names []string, configPath, host string) []string {
	found := map[string]bool{}
	for _, name := range names {
		if l, ok := parseName(name); ok && l.host == host {
			found[l.registry] = true
		}
	}
	for _, root := range filepath.SplitList(configPath) {
		entries, err := os.ReadDir(root)
		if err != nil {
			continue // it need not be there
		}
		for _, e := range entries {
			u, err := url.Parse("dummy://" + withColon(e.Name()))
			if err == nil && u.Hostname() == host {
				found[u.Host] = true
			}
		}
	}
	return slices.Collect(maps.Keys(found))
}

// withColon returns the registry that a folder is for: containerd takes HOST_PORT_ for HOST:PORT.
func withColon(folder string) string {
	if rest, ok := strings.CutSuffix(folder, "_"); ok {
		if i := strings.LastIndexByte(rest, '_'); i > 0 {
			return rest[:i] + ":" + rest[i+1:]
		}
	}
	return folder
}
