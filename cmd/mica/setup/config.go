package setup

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
	transferPlugin = "io.containerd.transfer.v1.local"
	imagesPlugin   = "io.containerd.cri.v1.images"
	contentPlugin  = "io.containerd.content.v1.content"
	oldCRI         = "io.containerd.grpc.v1.cri"
)

// newest is the latest version of containerd's configuration that is understood.
const newest = 4

type table = map[string]any

// files are a disk's files with others on top, by path. nil: no such file.
type files map[string][]byte

func (f files) read(path string) ([]byte, error) {
	b, ok := f[path]
	if ok && b == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	if ok {
		return b, nil
	}
	return os.ReadFile(path)
}

func (f files) glob(pattern string) ([]string, error) {
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

// load reads a configuration and what it imports as containerd does: breadth first, later files
// over earlier ones, each in the form of the newest version.
func load(path string, f files) (table, error) {
	merged, seen := table{}, map[string]bool{}
	for queue := []string{path}; len(queue) > 0; queue = queue[1:] {
		file := queue[0]
		if seen[file] {
			continue
		}
		seen[file] = true
		b, err := f.read(file)
		if err != nil {
			return nil, fmt.Errorf("read containerd's configuration: %w", err)
		}
		one, err := parse(file, b)
		if err != nil {
			return nil, err
		}
		mergeFile(merged, one)
		for _, pattern := range imports(file, one) {
			found := []string{pattern}
			if strings.Contains(pattern, "*") {
				if found, err = f.glob(pattern); err != nil {
					return nil, fmt.Errorf("imports of %s: %w", file, err)
				}
			}
			queue = append(queue, found...)
		}
	}
	return merged, nil
}

// imports are the absolute paths and patterns that a file imports.
func imports(file string, c table) []string {
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

// parse decodes a file of containerd's configuration, and gives tables and plugins the names that
// the newest version has for them.
func parse(file string, b []byte) (table, error) {
	var c table
	if err := toml.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	if c == nil {
		c = table{}
	}
	version, _ := c["version"].(int64)
	if version > newest {
		return nil, fmt.Errorf("%s has version %d of containerd's configuration; mica setup knows "+
			"%d: use a newer mica", file, version, newest)
	}
	for _, key := range []string{"plugins", "proxy_plugins"} {
		if _, ok := c[key].(table); c[key] != nil && !ok {
			return nil, fmt.Errorf("%s: %s is no table: containerd does not take that", file, key)
		}
	}
	plugins, _ := c["plugins"].(table)
	if version < 2 {
		if list, ok := c["disabled_plugins"].([]any); ok {
			for i := range list {
				if list[i] == "cri" {
					list[i] = oldCRI
				}
			}
		}
		if cri, ok := plugins["cri"]; ok {
			plugins[oldCRI] = cri
		}
	}
	if cri, ok := plugins[oldCRI].(table); ok && version < newest {
		plugins[imagesPlugin] = migrated(cri, plugins[imagesPlugin])
	}
	return c, nil
}

// migrated is the table of CRI's images with what version 2 has elsewhere.
func migrated(cri table, images any) table {
	to, _ := images.(table)
	if to == nil {
		to = table{}
	}
	move := func(from table, keys ...string) {
		for _, k := range keys {
			if v, ok := from[k]; ok {
				to[k] = v
			}
		}
	}
	move(cri, "registry", "max_concurrent_downloads", "image_pull_with_sync_fs")
	containerd, _ := cri["containerd"].(table)
	move(containerd, "snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers")
	return to
}

// mergeFile lays a file over those before it. Lists at the top grow, proxy plugins are replaced.
func mergeFile(to, from table) {
	for k, v := range from {
		old, isList := to[k].([]any)
		add, ok := v.([]any)
		proxies, isTable := to[k].(table)
		switch {
		case isList && ok:
			to[k] = append(slices.Clone(old), add...)
		case isTable && k == "proxy_plugins":
			maps.Copy(proxies, v.(table))
		default:
			merge(to, table{k: v})
		}
	}
}

// merge lays tables over tables, and replaces all else.
func merge(to, from table) {
	for k, v := range from {
		sub, ok := v.(table)
		old, isTable := to[k].(table)
		if ok && isTable {
			merge(old, sub)
		} else {
			to[k] = v
		}
	}
}

// at walks down tables by name; nil where one is missing.
func at(c table, keys ...string) any {
	var v any = c
	for _, k := range keys {
		m, _ := v.(table)
		v = m[k]
	}
	return v
}

// has says whether all of want is in have: keys of tables, elements of lists, equal values.
func has(have, want any) bool {
	switch want := want.(type) {
	case table:
		have, _ := have.(table)
		for k, v := range want {
			if !has(have[k], v) {
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
