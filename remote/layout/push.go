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
	"github.com/mica-snapshotter/mica/remote/atomicfile"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Create returns the layout in dir, made if there is none. A directory with other things in it is
// refused.
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
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	})
	if err == nil {
		err = atomicfile.ReplaceBytes(filepath.Join(dir, ocispec.ImageIndexFile), 0o644, index)
	}
	if err == nil {
		version := fmt.Sprintf(`{"imageLayoutVersion":%q}`, ocispec.ImageLayoutVersion)
		path := filepath.Join(dir, ocispec.ImageLayoutFile)
		err = atomicfile.ReplaceBytes(path, 0o644, []byte(version))
	}
	if err != nil {
		return nil, fmt.Errorf("create OCI layout %s: %w", dir, err)
	}
	return l, nil
}

// PushBlob stores the blob that d describes from r, read from its start, unless it is there. Digest
// and size are checked.
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
	err = os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = atomicfile.Replace(path, 0o644, func(w io.Writer) error {
			v := d.Digest.Verifier()
			n, err := io.Copy(io.MultiWriter(w, v), io.LimitReader(r, d.Size+1))
			if err == nil && (!v.Verified() || n != d.Size) {
				return fmt.Errorf("%d bytes, not %d: %w", n, d.Size, remote.ErrCorrupt)
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("store blob %s in %s: %w", d.Digest, i.layout.dir, err)
	}
	return nil
}

// PushReferrer stores m, with the given subject, and enters it into index.json, in the place of
// old.
func (i *Image) PushReferrer(
	ctx context.Context, subject ocispec.Descriptor, m ocispec.Manifest, old ...ocispec.Descriptor,
) (ocispec.Descriptor, error) {
	m.Subject = &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest,
		Size: subject.Size}
	m.MediaType, m.Versioned = ocispec.MediaTypeImageManifest, specs.Versioned{SchemaVersion: 2}
	content, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("store referrer in %s: %w", i.layout.dir, err)
	}
	d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(content),
		Size: int64(len(content))}
	if err := i.PushBlob(ctx, d, bytes.NewReader(content)); err != nil {
		return d, err
	}
	d.ArtifactType, d.Annotations = m.ArtifactType, maps.Clone(m.Annotations)
	if d.ArtifactType == "" {
		d.ArtifactType = m.Config.MediaType
	}
	return d, i.layout.enter(d, old...)
}

// enter adds an entry without a name to index.json, in the place of those without a name that are
// the same manifest, or one of old.
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
	old = append(slices.Clone(old), d)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(o ocispec.Descriptor) bool {
		goes := func(p ocispec.Descriptor) bool { return p.Digest == o.Digest }
		return o.Annotations[ocispec.AnnotationRefName] == "" && slices.ContainsFunc(old, goes)
	})
	index.Manifests = append(index.Manifests, d)
	index.SchemaVersion = 2
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return atomicfile.ReplaceBytes(filepath.Join(l.dir, ocispec.ImageIndexFile), 0o644, b)
}
