// Package conf is containerd's configuration as containerd reads it: a file and what it imports,
// merged, in the form of the newest version. No I/O but the reading of files.
package conf

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Tables of containerd's plugins, as configurations from version 3 on name them.
const (
	Transfer = "io.containerd.transfer.v1.local"
	Images   = "io.containerd.cri.v1.images"
	Content  = "io.containerd.content.v1.content"
	CRI      = "io.containerd.grpc.v1.cri"
)

// Alias is the proxy plugin by which micad serves BuildKit: docs/clients.md.
const Alias = "stargz"

// newest is the latest version of containerd's configuration that is understood.
const newest = 4

// Table is a table of a configuration.
type Table = map[string]any

// Files are a disk's files with others on top, by path. nil: no such file.
type Files map[string][]byte

// Read returns a file.
func (f Files) Read(path string) ([]byte, error) {
	b, ok := f[path]
	if ok && b == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	if ok {
		return b, nil
	}
	return os.ReadFile(path)
}

// Glob returns the files that a pattern names, sorted.
func (f Files) Glob(pattern string) ([]string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	for path := range f {
		if ok, _ := filepath.Match(pattern, path); ok {
			found = append(found, path)
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	return slices.DeleteFunc(found, func(path string) bool {
		b, ok := f[path]
		return ok && b == nil
	}), nil
}

// Load reads a configuration and what it imports as containerd does: breadth first, later files
// over earlier ones, each in the form of the newest version.
func Load(path string, f Files) (Table, error) {
	merged, seen := Table{}, map[string]bool{}
	for queue := []string{path}; len(queue) > 0; queue = queue[1:] {
		file := queue[0]
		if seen[file] {
			continue
		}
		seen[file] = true
		b, err := f.Read(file)
		if err != nil {
			return nil, fmt.Errorf("read containerd's configuration: %w", err)
		}
		one, err := Parse(file, b)
		if err != nil {
			return nil, err
		}
		mergeFile(merged, one)
		for _, pattern := range Imports(file, one) {
			found := []string{pattern}
			if strings.Contains(pattern, "*") {
				if found, err = f.Glob(pattern); err != nil {
					return nil, fmt.Errorf("imports of %s: %w", file, err)
				}
			}
			queue = append(queue, found...)
		}
	}
	return merged, nil
}

// Imports are the absolute paths and patterns that a file imports.
func Imports(file string, c Table) []string {
	var all []string
	list, _ := c["imports"].([]any)
	for _, i := range list {
		pattern, _ := i.(string)
		if pattern = filepath.Clean(pattern); !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(file), pattern)
		}
		all = append(all, pattern)
	}
	return all
}

// Parse decodes a file of containerd's configuration, and gives tables and plugins the names that
// the newest version has for them.
func Parse(file string, b []byte) (Table, error) {
	var c Table
	if err := toml.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	if c == nil {
		c = Table{}
	}
	version, _ := c["version"].(int64)
	if version > newest {
		return nil, fmt.Errorf("%s has version %d of containerd's configuration; mica knows "+
			"%d: use a newer mica", file, version, newest)
	}
	for _, key := range []string{"plugins", "proxy_plugins"} {
		if _, ok := c[key].(Table); c[key] != nil && !ok {
			return nil, fmt.Errorf("%s: %s is no table: containerd does not take that", file, key)
		}
	}
	plugins, _ := c["plugins"].(Table)
	if version < 2 {
		if list, ok := c["disabled_plugins"].([]any); ok {
			for i := range list {
				if list[i] == "cri" {
					list[i] = CRI
				}
			}
		}
		if cri, ok := plugins["cri"]; ok {
			plugins[CRI] = cri
		}
	}
	if cri, ok := plugins[CRI].(Table); ok && version < newest {
		plugins[Images] = migrated(cri, plugins[Images])
	}
	return c, nil
}

// migrated is the table of CRI's images with what version 2 has elsewhere.
func migrated(cri Table, images any) Table {
	to, _ := images.(Table)
	if to == nil {
		to = Table{}
	}
	move := func(from Table, keys ...string) {
		for _, k := range keys {
			if v, ok := from[k]; ok {
				to[k] = v
			}
		}
	}
	move(cri, "registry", "max_concurrent_downloads", "image_pull_with_sync_fs")
	containerd, _ := cri["containerd"].(Table)
	move(containerd, "snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers")
	return to
}

// mergeFile lays a file over those before it. Lists at the top grow, proxy plugins are replaced.
func mergeFile(to, from Table) {
	for k, v := range from {
		old, isList := to[k].([]any)
		add, ok := v.([]any)
		proxies, isTable := to[k].(Table)
		switch {
		case isList && ok:
			to[k] = append(slices.Clone(old), add...)
		case isTable && k == "proxy_plugins":
			maps.Copy(proxies, v.(Table))
		default:
			Merge(to, Table{k: v})
		}
	}
}

// Merge lays tables over tables, and replaces all else.
func Merge(to, from Table) {
	for k, v := range from {
		sub, ok := v.(Table)
		old, isTable := to[k].(Table)
		if ok && isTable {
			Merge(old, sub)
		} else {
			to[k] = v
		}
	}
}

// At walks down tables by name; nil where one is missing.
func At(c Table, keys ...string) any {
	var v any = c
	for _, k := range keys {
		m, _ := v.(Table)
		v = m[k]
	}
	return v
}

// String is a string in a table; "" where there is none.
func String(c Table, keys ...string) string {
	s, _ := At(c, keys...).(string)
	return s
}

// Sub is a table in a table; nil where there is none.
func Sub(c Table, keys ...string) Table {
	t, _ := At(c, keys...).(Table)
	return t
}

// Has says whether all of want is in have: keys of tables, elements of lists, equal values.
func Has(have, want any) bool {
	switch want := want.(type) {
	case Table:
		have, _ := have.(Table)
		for k, v := range want {
			if !Has(have[k], v) {
				return false
			}
		}
		return true
	case []any:
		have, _ := have.([]any)
		for _, v := range want {
			if !slices.ContainsFunc(have, func(h any) bool { return reflect.DeepEqual(h, v) }) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(have, want)
}
