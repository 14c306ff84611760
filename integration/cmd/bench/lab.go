package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/remote"
)

// lab is what all measurements have in common: a registry with the images, and
// what Mica publishes beside them.
type lab struct {
	registry *registry.Registry
	client   *remote.Client
	logs     string // folder for the logs of runs that failed
}

// openLab starts a registry below dir.
func openLab(ctx context.Context, dir, logs string) (*lab, error) {
	client, err := remote.New(remote.Config{})
	if err != nil {
		return nil, err
	}
	reg, err := registry.Distribution(ctx, filepath.Join(dir, "registry"))
	if err != nil {
		client.Close()
		return nil, err
	}
	return &lab{registry: reg, client: client, logs: logs}, nil
}

// close ends the registry.
func (l *lab) close() error {
	l.client.Close()
	return l.registry.Close()
}

// repository is where an image lies with what is published beside it. Each
// such state has a repository of its own, since referrers belong to one.
func repository(w workload, p beside) string {
	return "/bench/" + w.name + map[beside]string{nothing: "", indexed: "-indexed",
		profiled: "-profiled"}[p] + ":1"
}

// ref is the reference that nodes pull, through the network.
func (l *lab) ref(w workload, p beside) string { return l.registry.Host() + repository(w, p) }

// direct is the same without the network.
func (l *lab) direct(w workload, p beside) string { return l.registry.Direct() + repository(w, p) }

// prepare builds a workload's image, and pushes it with all that the ways need.
func (l *lab) prepare(ctx context.Context, w workload, ways []way) (imageInfo, error) {
	img, err := w.recipe.Build(ctx)
	if err != nil {
		return imageInfo{}, fmt.Errorf("build the image: %w", err)
	}
	info := imageInfo{Workload: w.name, About: w.about, Layers: len(w.recipe.Steps) + 1}
	if info.Compressed, err = images.Size(img); err != nil {
		return imageInfo{}, err
	}
	if info.Unpacked, err = images.Unpacked(img); err != nil {
		return imageInfo{}, err
	}
	need := map[beside]bool{}
	for _, y := range ways {
		need[y.beside] = true
	}
	for p := range need {
		if err := images.Push(ctx, l.direct(w, p), img); err != nil {
			return imageInfo{}, err
		}
		if p == nothing {
			continue
		}
		begin := time.Now()
		if _, err := node.Command(ctx, "mica", "index", "create", "--push",
			l.direct(w, p)); err != nil {
			return imageInfo{}, err
		}
		info.IndexSeconds = time.Since(begin).Seconds()
		if p != profiled {
			continue
		}
		if _, err := node.Command(ctx, "mica", "profile", "record", "--push",
			l.direct(w, p)); err != nil {
			return imageInfo{}, err
		}
		if info.ProfileRead, info.Profile, err = l.profileSize(ctx, l.direct(w, p)); err != nil {
			return imageInfo{}, fmt.Errorf("size of the profile: %w", err)
		}
	}
	return info, nil
}

// warm reads all that stands at the registry of one image, so that its copy is
// in memory: the registry is not what is measured.
func (l *lab) warm(ctx context.Context, ref string) error {
	return l.walk(ctx, ref, func(im *remote.Image, d ocispec.Descriptor) error {
		r, err := im.Open(ctx, d)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(io.Discard, r)
		return err
	})
}

// walk calls fn for all blobs of an image and of the artifacts beside it.
func (l *lab) walk(ctx context.Context, ref string, fn func(*remote.Image, ocispec.Descriptor) error) error {
	im, err := l.client.Image(ref)
	if err != nil {
		return err
	}
	desc, err := im.Resolve(ctx)
	if err != nil {
		return err
	}
	list, err := artifacts(ctx, im, desc.Digest)
	if err != nil {
		return err
	}
	for _, d := range append(list, desc) {
		m, err := manifest(ctx, im, d)
		if err != nil {
			return err
		}
		for _, b := range append(m.Layers, m.Config) {
			if err := fn(im, b); err != nil {
				return fmt.Errorf("blob %s: %w", b.Digest, err)
			}
		}
	}
	return nil
}
