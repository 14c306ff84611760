package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// hostDir finds the directory that configures a registry, "" if none does, and a stamp that changes
// when its files do, or the certificates that its hosts.toml names.
func (c *Client) hostDir(registry string) (dir, stamp string, err error) {
	for _, root := range filepath.SplitList(c.ConfigPath) {
		dir, err = config.HostDirFromRoot(root)(registry)
		if err == nil {
			break
		}
		if !errdefs.IsNotFound(err) && !errors.Is(err, fs.ErrNotExist) {
			return "", "", err
		}
		dir = ""
	}
	if dir == "" {
		return "", "", nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", "", err
	}
	files := named(dir)
	for _, e := range entries {
		files = append(files, filepath.Join(dir, e.Name()))
	}
	var b strings.Builder
	for _, file := range files {
		if i, err := os.Stat(file); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", file, i.Size(), i.ModTime().UnixNano())
		}
	}
	return dir, dir + "\n" + b.String(), nil
}

// tlsFiles is what hosts.toml says of certificates: each a string, or a list of strings or of
// pairs.
type tlsFiles struct {
	CA     any `toml:"ca"`
	Client any `toml:"client"`
}

// named returns the files with certificates and keys that a folder's hosts.toml names. They may lie
// anywhere, and are renewed where they lie. None of a file that is missing or broken: containerd's
// reader says what is wrong.
func named(dir string) (files []string) {
	var conf struct {
		tlsFiles
		Hosts map[string]tlsFiles `toml:"host"`
	}
	b, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
	if err != nil || toml.Unmarshal(b, &conf) != nil {
		return nil
	}
	var add func(v any)
	add = func(v any) {
		switch v := v.(type) {
		case string:
			if !filepath.IsAbs(v) {
				v = filepath.Join(dir, v)
			}
			files = append(files, v)
		case []any:
			for _, e := range v {
				add(e)
			}
		}
	}
	add(conf.CA)
	add(conf.Client)
	for _, h := range conf.Hosts {
		add(h.CA)
		add(h.Client)
	}
	slices.Sort(files)
	return files
}
