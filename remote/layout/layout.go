// Package layout reads and extends an OCI image layout
// (https://github.com/opencontainers/image-spec, image-layout.md): a directory with oci-layout,
// index.json and blobs/ALGORITHM/HEX. An Image of it has the methods of remote.Image, so that an
// index can be made for an image that is in no registry yet, and stored beside it.
//
// Blobs are written to a temporary file, synced and renamed; index.json is replaced the same way
// under a lock of the directory, so that several processes may write to one layout. Safe for
// parallel use.
package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/mica-snapshotter/mica/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layout is a directory that holds images.
type Layout struct {
	dir string
}

// Open returns the layout in dir, which must be one.
func Open(dir string) (*Layout, error) {
	l := &Layout{dir: dir}
	b, err := l.read(ocispec.ImageLayoutFile)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout %s: %w", dir, err)
	}
	var v ocispec.ImageLayout
	if err := json.Unmarshal(b, &v); err != nil || v.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("open OCI layout %s: version %q is not %s", dir, v.Version,
			ocispec.ImageLayoutVersion)
	}
	if _, err := l.index(); err != nil {
		return nil, err
	}
	return l, nil
}

// read returns a file of the layout, at most as large as a manifest may be.
func (l *Layout) read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(l.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, remote.MaxManifest+1))
	if err == nil && len(b) > remote.MaxManifest {
		err = remote.ErrTooLarge
	}
	return b, err
}

func (l *Layout) index() (ocispec.Index, error) {
	var index ocispec.Index
	b, err := l.read(ocispec.ImageIndexFile)
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil {
		return index, fmt.Errorf("read index of OCI layout %s: %w", l.dir, err)
	}
	return index, nil
}

// Image returns the image of that name: a value of org.opencontainers.image.ref.name, or a digest,
// or "" where the layout has only one.
func (l *Layout) Image(name string) *Image { return &Image{layout: l, name: name} }

// Image is one image of a layout.
type Image struct {
	layout *Layout
	name   string
}

// Ref returns the layout's directory and the image's name.
func (i *Image) Ref() string {
	if i.name == "" {
		return i.layout.dir
	}
	return i.layout.dir + ":" + i.name
}

// Resolve returns the descriptor of the image's manifest or index.
func (i *Image) Resolve(context.Context) (ocispec.Descriptor, error) {
	index, err := i.layout.index()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var found []ocispec.Descriptor
	for _, d := range index.Manifests {
		name := d.Annotations[ocispec.AnnotationRefName]
		switch {
		case i.name != "" && (name == i.name || d.Digest.String() == i.name):
			return checked(d)
		case i.name == "" && !i.isReferrer(d):
			found = append(found, d)
		}
	}
	switch {
	case i.name != "":
		return ocispec.Descriptor{}, fmt.Errorf("OCI layout %s: image %q: %w", i.layout.dir, i.name,
			remote.ErrNotFound)
	case len(found) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("OCI layout %s: no image: %w", i.layout.dir,
			remote.ErrNotFound)
	case len(found) > 1:
		return ocispec.Descriptor{}, fmt.Errorf("OCI layout %s: %d images: name one of them",
			i.layout.dir, len(found))
	}
	return checked(found[0])
}

func checked(d ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := d.Digest.Validate(); err != nil || d.Size < 0 {
		return ocispec.Descriptor{}, fmt.Errorf("descriptor %s, %d bytes: %w", d.Digest, d.Size,
			remote.ErrCorrupt)
	}
	return d, nil
}

// isReferrer tells whether an entry of index.json is there for another's sake.
func (i *Image) isReferrer(d ocispec.Descriptor) bool {
	if d.ArtifactType != "" {
		return true
	}
	b, err := i.fetch(d, remote.MaxManifest)
	if err != nil {
		return false // whoever wants it will hear why
	}
	var m struct {
		Subject *ocispec.Descriptor `json:"subject"`
	}
	return json.Unmarshal(b, &m) == nil && m.Subject != nil
}

// Manifest returns the manifest or index that d describes, with the right digest.
func (i *Image) Manifest(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	return i.fetch(d, remote.MaxManifest)
}

// FetchBlob returns a whole blob of at most limit bytes, with the right digest.
func (i *Image) FetchBlob(_ context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	return i.fetch(d, limit)
}

func (i *Image) fetch(d ocispec.Descriptor, limit int64) ([]byte, error) {
	b, err := i.Blob(d).open()
	if err != nil {
		return nil, err
	}
	defer b.Close()
	what := fmt.Sprintf("blob %s of %s", d.Digest, i.layout.dir)
	info, err := b.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s: %d bytes, at most %d wanted: %w", what, info.Size(), limit,
			remote.ErrTooLarge)
	}
	p := make([]byte, info.Size())
	if _, err := io.ReadFull(b, p); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if got := d.Digest.Algorithm().FromBytes(p); got != d.Digest ||
		(d.Size > 0 && d.Size != info.Size()) {
		return nil, fmt.Errorf("%s: %d bytes with digest %s: %w", what, len(p), got,
			remote.ErrCorrupt)
	}
	return p, nil
}

// Referrers returns the descriptors of the manifests in index.json whose subject is the given one,
// of one of these artifact types (none: any), with their annotations.
func (i *Image) Referrers(
	_ context.Context, subject digest.Digest, types ...string,
) ([]ocispec.Descriptor, error) {
	index, err := i.layout.index()
	if err != nil {
		return nil, err
	}
	var out []ocispec.Descriptor
	for _, d := range index.Manifests {
		b, err := i.fetch(d, remote.MaxManifest)
		if errors.Is(err, remote.ErrNotFound) {
			continue // a sparse layout
		}
		if err != nil {
			return nil, err
		}
		var m ocispec.Manifest
		if json.Unmarshal(b, &m) != nil || m.Subject == nil || m.Subject.Digest != subject {
			continue
		}
		d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
		if d.ArtifactType == "" {
			d.ArtifactType = m.Config.MediaType
		}
		if len(types) == 0 || slices.Contains(types, d.ArtifactType) {
			out = append(out, d)
		}
	}
	return out, nil
}

// Open streams a whole blob. It does not verify it.
func (i *Image) Open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return i.Blob(d).Range(ctx, 0, d.Size)
}

// Blob returns the blob that d describes. No I/O.
func (i *Image) Blob(d ocispec.Descriptor) *Blob { return &Blob{dir: i.layout.dir, desc: d} }

// Blob is one blob of a layout.
type Blob struct {
	dir  string
	desc ocispec.Descriptor
}

// Size returns the blob's size in bytes, as its descriptor has it.
func (b *Blob) Size() int64 { return b.desc.Size }

func (b *Blob) open() (*os.File, error) {
	path, err := blobPath(b.dir, b.desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s of %s: %w", b.desc.Digest, b.dir, remote.ErrNotFound)
	}
	return f, err
}

// ReadAt fills p with the blob's bytes from off on, all of them or it returns an error.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) error {
	r, err := b.Range(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.ReadFull(r, p); err != nil {
		return fmt.Errorf("read blob %s of %s: %w", b.desc.Digest, b.dir, err)
	}
	return nil
}

// Range returns the n bytes from off on as a stream. A file that is shorter gives
// io.ErrUnexpectedEOF.
func (b *Blob) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > b.desc.Size || n > b.desc.Size-off {
		return nil, fmt.Errorf("read blob %s of %s: bytes %d+%d are outside its %d", b.desc.Digest,
			b.dir, off, n, b.desc.Size)
	}
	f, err := b.open()
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("read blob %s of %s: %w", b.desc.Digest, b.dir, err)
	}
	return &part{f: f, left: n}, nil
}

// part is a range of a file.
type part struct {
	f    *os.File
	left int64
}

// Read implements io.Reader.
func (p *part) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n, err := p.f.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close implements io.Closer.
func (p *part) Close() error { return p.f.Close() }

// blobPath is where a blob lies. The digest is checked, for it comes from files and becomes a path.
func blobPath(dir string, d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("blob %q of %s: %w", d, dir, err)
	}
	return filepath.Join(dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}
