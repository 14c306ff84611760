package snapshotter

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
)

// builderPrefix starts the names of BuildKit's snapshots. No other name starts so, because a
// namespace starts with a letter or a digit.
const builderPrefix = "+buildkit/"

// builder is the Snapshotter as BuildKit's snapshotter: a second plugin of containerd's, because
// BuildKit pulls lazily, and shares layers between stages, with certain names of plugins alone. The
// plugins must not see each other's snapshots, because containerd's collector removes those of a
// plugin that its own database does not have under the plugin's name. So the snapshots of this one
// have names with a prefix here, which no caller sees.
//
// BuildKit's Prepare of a layer names the chain and, as containerd does, the image, but not its
// manifest. Of what it pulls it makes no image: Scope.Unnamed.
type builder struct{ s *Snapshotter }

var (
	_ snapshots.Snapshotter = builder{}
	_ snapshots.Cleaner     = builder{}
)

// BuildKit returns the snapshotter of a second plugin, for BuildKit. It is open as long as s is.
func (s *Snapshotter) BuildKit() snapshots.Snapshotter { return builder{s} }

// inside returns the name that a snapshot has here.
func (builder) inside(name string) string {
	if name == "" {
		return ""
	}
	return builderPrefix + name
}

// outside returns what a caller is told of a snapshot.
func (builder) outside(i snapshots.Info) snapshots.Info {
	i.Name = strings.TrimPrefix(i.Name, builderPrefix)
	i.Parent = strings.TrimPrefix(i.Parent, builderPrefix)
	return i
}

// Stat implements snapshots.Snapshotter.
func (b builder) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	i, err := b.s.Stat(ctx, b.inside(key))
	return b.outside(i), err
}

// Update implements snapshots.Snapshotter.
func (b builder) Update(
	ctx context.Context, i snapshots.Info, fieldpaths ...string,
) (snapshots.Info, error) {
	i.Name = b.inside(i.Name)
	i, err := b.s.Update(ctx, i, fieldpaths...)
	return b.outside(i), err
}

// Usage implements snapshots.Snapshotter.
func (b builder) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return b.s.Usage(ctx, b.inside(key))
}

// Mounts implements snapshots.Snapshotter.
func (b builder) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return b.s.Mounts(ctx, b.inside(key))
}

// Prepare implements snapshots.Snapshotter.
func (b builder) Prepare(
	ctx context.Context, key, parent string, opts ...snapshots.Opt,
) ([]mount.Mount, error) {
	return b.s.Prepare(ctx, b.inside(key), b.inside(parent), opts...)
}

// View implements snapshots.Snapshotter.
func (b builder) View(
	ctx context.Context, key, parent string, opts ...snapshots.Opt,
) ([]mount.Mount, error) {
	return b.s.View(ctx, b.inside(key), b.inside(parent), opts...)
}

// Commit implements snapshots.Snapshotter.
func (b builder) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return b.s.Commit(ctx, b.inside(name), b.inside(key), opts...)
}

// Remove implements snapshots.Snapshotter.
func (b builder) Remove(ctx context.Context, key string) error {
	return b.s.Remove(ctx, b.inside(key))
}

// Walk implements snapshots.Snapshotter.
func (b builder) Walk(ctx context.Context, fn snapshots.WalkFunc, filter ...string) error {
	match, err := filters.ParseAll(filter...)
	if err != nil {
		return err
	}
	return b.s.walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		if i = b.outside(i); !match.Match(fields(i)) {
			return nil
		}
		return fn(ctx, i)
	}, true)
}

// fields are what a filter may ask of a snapshot.
func fields(i snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (value string, ok bool) {
		switch path[0] {
		case "kind":
			return strings.ToLower(i.Kind.String()), true
		case "name":
			return i.Name, true
		case "parent":
			return i.Parent, true
		case "labels":
			value, ok = i.Labels[strings.Join(path[1:], ".")]
		}
		return value, ok
	})
}

// Cleanup implements snapshots.Cleaner.
func (b builder) Cleanup(ctx context.Context) error { return b.s.Cleanup(ctx) }

// Close implements snapshots.Snapshotter. It leaves the Snapshotter open.
func (builder) Close() error { return nil }

// scope returns whose images a snapshot with this key can be of: those of the namespace that the
// key starts with, "" where it has none.
func scope(key string, labels map[string]string) Scope {
	key, built := strings.CutPrefix(key, builderPrefix)
	namespace, _, ok := strings.Cut(key, "/")
	if !ok {
		return Scope{}
	}
	in := Scope{Namespace: namespace, Unnamed: built}
	if built && labels[snapshotters.TargetRefLabel] != "" {
		in.Known = []string{labels[snapshotters.TargetRefLabel]}
	}
	return in
}

// prefixOf returns what the names of snapshots start with that are made by the caller of this key.
func prefixOf(key string) string {
	if strings.HasPrefix(key, builderPrefix) {
		return builderPrefix
	}
	return ""
}
