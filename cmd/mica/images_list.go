package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/doctor"
	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/snapshotter"
)

// imageLister lists the images of a namespace.
type imageLister struct {
	client    *containerd.Client
	micad     string // the snapshotter's name
	namespace string
	served    map[digest.Digest]cache.Usage // what micad has

	snapshots map[string]map[string]snapshots.Info // by snapshotter and name
	chains    map[string]map[string]*imageStatus   // by snapshotter and top chain
}

func (l *imageLister) list(ctx context.Context) ([]*imageStatus, error) {
	all, err := l.client.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	l.chains = map[string]map[string]*imageStatus{}
	byTarget := map[digest.Digest]*imageStatus{}
	var out []*imageStatus
	for _, i := range all {
		if s, ok := byTarget[i.Target.Digest]; ok {
			s.Names = append(s.Names, i.Name)
			continue
		}
		s := &imageStatus{
			Names: []string{i.Name}, Namespace: l.namespace, Digest: i.Target.Digest,
			Layers: []layerStatus{}, UsedBy: []string{},
		}
		if err := l.look(ctx, i.Target, s); errdefs.IsNotFound(err) {
			s.Error = "not here as a whole: " + err.Error()
		} else if err != nil {
			return nil, fmt.Errorf("image %s: %w", i.Name, err)
		}
		byTarget[i.Target.Digest] = s
		out = append(out, s)
	}
	for _, s := range out {
		s.Names = tellingNames(s.Names)
	}
	slices.SortFunc(out, func(a, b *imageStatus) int { return cmp.Compare(a.Names[0], b.Names[0]) })
	return out, l.users(ctx)
}

// tellingNames sorts an image's names, and leaves out those that are a digest, or have one in place
// of a tag, if there is another: CRI keeps such ones beside each tag.
func tellingNames(names []string) []string {
	slices.Sort(names)
	telling := slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		r, err := reference.ParseAnyReference(name)
		_, tagged := r.(reference.Tagged)
		_, digested := r.(reference.Digested)
		return err == nil && digested && !tagged
	})
	if len(telling) > 0 {
		return telling
	}
	return names
}

// look finds out what an image has, and where. The error is ErrNotFound where containerd lacks a
// part.
func (l *imageLister) look(ctx context.Context, target ocispec.Descriptor, s *imageStatus) error {
	store := l.client.ContentStore()
	m, err := l.manifest(ctx, store, target)
	if err != nil {
		return err
	}
	b, err := content.ReadBlob(ctx, store, m.Config)
	if err != nil {
		return err
	}
	var config ocispec.Image
	if err := json.Unmarshal(b, &config); err != nil {
		return fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	s.Platform = platforms.Format(config.Platform)
	s.Snapshotter = m.unpackedBy
	chains := identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs))
	if len(chains) != len(m.Layers) || len(chains) == 0 {
		return nil // an artifact
	}
	there, err := l.snapshotsOf(ctx, s.Snapshotter)
	if err != nil {
		return err
	}
	for i, d := range m.Layers {
		layer := layerStatus{Layer: d.Digest, State: "absent"}
		if info, ok := there[chains[i].String()]; ok {
			if err := l.lookAt(ctx, s.Snapshotter, info, &layer); err != nil {
				return err
			}
		}
		s.Layers = append(s.Layers, layer)
		s.Blobs += d.Size
		s.Size += layer.Size
		s.Present += layer.Present
	}
	if s.Snapshotter != "" {
		if l.chains[s.Snapshotter] == nil {
			l.chains[s.Snapshotter] = map[string]*imageStatus{}
		}
		l.chains[s.Snapshotter][chains[len(chains)-1].String()] = s
	}
	return nil
}

// lookAt finds out how a layer that a snapshotter has is there.
func (l *imageLister) lookAt(
	ctx context.Context, by string, info snapshots.Info, layer *layerStatus,
) error {
	blob, err := snapshotter.BlobOf(info)
	if err != nil {
		return err
	}
	if u, ok := l.served[blob]; ok && by == l.micad {
		layer.State, layer.Size, layer.Present = "lazy", u.Unpacked, u.Present
		if u.State == "complete" || u.State == "verified" {
			layer.State = "whole"
		}
		return nil
	}
	u, err := l.client.SnapshotService(by).Usage(ctx, info.Name)
	if err != nil {
		return err
	}
	layer.State, layer.Size, layer.Present = "ordinary", u.Size, u.Size
	return nil
}

// manifestHere is a manifest whose configuration containerd has.
type manifestHere struct {
	ocispec.Manifest
	unpackedBy string // a snapshotter; "": none has
}

// manifest returns the manifest of an image for the platform that is here: the first that micad
// has, or else another snapshotter, or none.
func (l *imageLister) manifest(
	ctx context.Context, store content.Store, target ocispec.Descriptor,
) (manifestHere, error) {
	var all []manifestHere
	visit := func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := images.Children(ctx, store, d)
		if images.IsIndexType(d.MediaType) || err != nil {
			return children, absentIsNone(d, target, err)
		}
		if !images.IsManifestType(d.MediaType) {
			return nil, nil
		}
		m := manifestHere{}
		b, err := content.ReadBlob(ctx, store, d)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, &m.Manifest); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		config, err := store.Info(ctx, m.Config.Digest)
		if err != nil {
			return nil, absentIsNone(d, target, err)
		}
		m.unpackedBy = l.unpackedBy(config)
		all = append(all, m)
		return nil, nil
	}
	if err := images.Walk(ctx, images.HandlerFunc(visit), target); err != nil {
		return manifestHere{}, err
	}
	if len(all) == 0 {
		return manifestHere{}, fmt.Errorf("no platform of it: %w", errdefs.ErrNotFound)
	}
	return slices.MaxFunc(all, func(a, b manifestHere) int {
		return cmp.Compare(l.rank(a.unpackedBy), l.rank(b.unpackedBy))
	}), nil
}

// absentIsNone drops the error of a part of an image that is not here, such as another platform's.
func absentIsNone(d, target ocispec.Descriptor, err error) error {
	if errdefs.IsNotFound(err) && d.Digest != target.Digest {
		return nil
	}
	return err
}

func (l *imageLister) rank(snapshotter string) int {
	switch snapshotter {
	case l.micad:
		return 2
	case "":
		return 0
	}
	return 1
}

// unpackedBy returns the snapshotter that has an image whose configuration is known to containerd
// like this: micad if it has, "" if none has.
func (l *imageLister) unpackedBy(config content.Info) string {
	var names []string
	for label := range config.Labels {
		if name, ok := strings.CutPrefix(label, doctor.SnapshotLabel); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	switch {
	case len(names) == 0:
		return ""
	case slices.Contains(names, l.micad):
		return l.micad
	}
	return names[0]
}

// snapshotsOf returns a snapshotter's snapshots by name.
func (l *imageLister) snapshotsOf(
	ctx context.Context, snapshotter string,
) (map[string]snapshots.Info, error) {
	if known, ok := l.snapshots[snapshotter]; ok || snapshotter == "" {
		return known, nil
	}
	all := map[string]snapshots.Info{}
	err := l.client.SnapshotService(snapshotter).Walk(ctx,
		func(_ context.Context, i snapshots.Info) error {
			all[i.Name] = i
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("snapshots of %s: %w", snapshotter, err)
	}
	l.snapshots[snapshotter] = all
	return all, nil
}

// users finds the containers of the images. Whatever has written to a snapshot on an image's layers
// is one; docker's containers have another snapshot between.
func (l *imageLister) users(ctx context.Context) error {
	containers, err := l.client.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	names := map[string]string{} // by snapshotter and key
	for _, c := range containers {
		names[c.Snapshotter+" "+c.SnapshotKey] = admin.ContainerName(c.ID, c.Labels)
	}
	for snapshotter, all := range l.snapshots {
		for _, key := range slices.Sorted(maps.Keys(all)) {
			i := all[key]
			if i.Kind == snapshots.KindCommitted || strings.HasPrefix(key, extractPrefix) {
				continue
			}
			if s := imageBelow(all, l.chains[snapshotter], i.Parent); s != nil {
				name := names[snapshotter+" "+key]
				if pod := names[snapshotter+" "+sandboxOf(key)]; name == "" && pod != "" {
					name = strings.TrimSuffix(pod, "/"+admin.Sandbox) + " (volume)"
				}
				s.UsedBy = append(s.UsedBy, cmp.Or(name, key))
			}
		}
	}
	return nil
}

// extractPrefix begins the names of snapshots that containerd unpacks a layer into.
const extractPrefix = "extract-"

// sandboxOf returns the sandbox of a pod that mounts an image as a volume, of which CRI names the
// snapshot by its mount point; "": the snapshot is none.
func sandboxOf(key string) string {
	_, after, _ := strings.Cut(key, "/image-volumes/")
	sandbox, _, _ := strings.Cut(after, "/")
	return sandbox
}

// imageBelow returns the image whose snapshots a snapshot lies on; nil: none that is known.
func imageBelow(
	all map[string]snapshots.Info, chains map[string]*imageStatus, parent string,
) *imageStatus {
	for ; parent != ""; parent = all[parent].Parent {
		if s := chains[parent]; s != nil {
			return s
		}
	}
	return nil
}
