package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/mica-snapshotter/mica/remote"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Create returns the layout in dir, made if there is none. A directory with other things in it is refused.
func Create(dir string) (*Layout, error) {
	l, err := Open(dir)
	if err == nil {
		return l, nil
	}
	if entries, e := os.ReadDir(dir); e == nil && len(entries) > 0 {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir), 0o755); err != nil {
		return nil, fmt.Errorf("create OCI layout: %w", err)
	}
	l = &Layout{dir: dir}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
	})
	if err == nil {
		err = replace(filepath.Join(dir, ocispec.ImageIndexFile), bytes.NewReader(index), nil)
	}
	if err == nil {
		version := fmt.Sprintf(`{"imageLayoutVersion":%q}`, ocispec.ImageLayoutVersion)
		err = replace(filepath.Join(dir, ocispec.ImageLayoutFile), bytes.NewReader([]byte(version)), nil)
	}
	if err != nil {
		return nil, fmt.Errorf("create OCI layout %s: %w", dir, err)
	}
	return l, nil
}

// replace writes a file in one step: temporary, sync, rename, sync of the directory. check, unless nil, may refuse it first.
func replace(path string, r io.Reader, check func() error) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = io.Copy(f, r); err != nil {
		return err
	}
	if check != nil {
		if err = check(); err != nil {
			return err
		}
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// PushBlob stores the blob that d describes from r, read from its start, unless it is there. Digest and size are checked.
func (i *Image) PushBlob(_ context.Context, d ocispec.Descriptor, r io.ReadSeeker) error {
	path, err := blobPath(i.layout.dir, d.Digest)
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil && info.Size() == d.Size {
		return nil
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("store blob %s in %s: %w", d.Digest, i.layout.dir, err)
	}
	v := d.Digest.Verifier()
	n := &count{}
	err = replace(path, io.TeeReader(io.LimitReader(r, d.Size+1), io.MultiWriter(v, n)), func() error {
		if !v.Verified() || n.n != d.Size {
			return fmt.Errorf("%d bytes, not %d: %w", n.n, d.Size, remote.ErrCorrupt)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store blob %s in %s: %w", d.Digest, i.layout.dir, err)
	}
	return nil
}

type count struct{ n int64 }

func (c *count) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// PushManifest stores a manifest or index and enters it into index.json, under the name tag unless that is empty. Another
// entry of that name loses it.
func (i *Image) PushManifest(ctx context.Context, mediaType string, content []byte, tag string) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if len(content) > remote.MaxManifest {
		return d, fmt.Errorf("store manifest %s in %s: %w", d.Digest, i.layout.dir, remote.ErrTooLarge)
	}
	if err := i.PushBlob(ctx, d, bytes.NewReader(content)); err != nil {
		return d, err
	}
	entry := d
	if tag != "" {
		entry.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	}
	return d, i.layout.enter(entry)
}

// PushReferrer stores m, with the given subject, and enters it into index.json, in the place of
// old.
func (i *Image) PushReferrer(
	ctx context.Context, subject ocispec.Descriptor, m ocispec.Manifest, old ...ocispec.Descriptor,
) (ocispec.Descriptor, error) {
	m.Subject = &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	m.MediaType, m.Versioned = ocispec.MediaTypeImageManifest, specs.Versioned{SchemaVersion: 2}
	content, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("store referrer in %s: %w", i.layout.dir, err)
	}
	d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if err := i.PushBlob(ctx, d, bytes.NewReader(content)); err != nil {
		return d, err
	}
	d.ArtifactType, d.Annotations = m.ArtifactType, maps.Clone(m.Annotations)
	if d.ArtifactType == "" {
		d.ArtifactType = m.Config.MediaType
	}
	return d, i.layout.enter(d, old...)
}

// enter adds an entry to index.json, or replaces the one that is the same manifest under the same
// name, and old, which have no names.
func (l *Layout) enter(d ocispec.Descriptor, old ...ocispec.Descriptor) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("enter %s into index of OCI layout %s: %w", d.Digest, l.dir, err)
		}
	}()
	lock, err := os.Open(l.dir) // a directory can be locked: no further file in the layout
	if err != nil {
		return err
	}
	defer lock.Close()
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return err
	}
	index, err := l.index()
	if err != nil {
		return err
	}
	name := d.Annotations[ocispec.AnnotationRefName]
	index.Manifests = slices.DeleteFunc(index.Manifests, func(o ocispec.Descriptor) bool {
		other := o.Annotations[ocispec.AnnotationRefName]
		goes := func(p ocispec.Descriptor) bool { return p.Digest == o.Digest }
		return o.Digest == d.Digest && other == name ||
			other == "" && slices.ContainsFunc(old, goes)
	})
	for k, o := range index.Manifests {
		if name != "" && o.Annotations[ocispec.AnnotationRefName] == name {
			a := maps.Clone(o.Annotations)
			delete(a, ocispec.AnnotationRefName)
			index.Manifests[k].Annotations = a
		}
	}
	index.Manifests = append(index.Manifests, d)
	index.SchemaVersion = 2
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return replace(filepath.Join(l.dir, ocispec.ImageIndexFile), bytes.NewReader(b), nil)
}
