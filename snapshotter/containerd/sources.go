package containerd

import (
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
// config_path, where these agree.
func (c *Client) locateAll(names []string, host, repository string) []string {
	if host == dockerHub {
		return []string{host + "/" + repository}
	}
	found := locators(names, host, repository)
	if len(found) == 0 {
		if registry, ok := registryOf(names, c.configPath, host); ok {
			found = []string{registry + "/" + repository}
		}
	}
	return found
}

// registryOf returns the registry at a host: the one that the names of images have, whichever
// repositories they are of, and that containerd has a folder for below its config_path. ok is false
// where there is none, or more than one.
func registryOf(names []string, configPath, host string) (registry string, ok bool) {
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
	for r := range found {
		return r, len(found) == 1
	}
	return "", false
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
