package images

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Recipe says how an image is made: a minimal system of this machine's
// distribution, and above it a layer for each step. Recipes that begin with the
// same steps share these layers.
type Recipe struct {
	Steps []Step // lowest first
	Cmd   []string
}

// Step is a layer: what a shell script, run as root inside the system below,
// changes in it. A script that names apt-get runs after apt-get update.
type Step struct{ Name, Script string }

// Build returns the image of a recipe. Its layers are built at first use, which
// needs root and the distribution's mirror, and then kept in Cache.
func (r Recipe) Build(ctx context.Context) (v1.Image, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	sys, err := release()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "layers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	paths := r.paths(dir, sys)
	layers, err := loadLayers(paths)
	if errors.Is(err, fs.ErrNotExist) {
		if err := r.build(ctx, sys, paths); err != nil {
			return nil, err
		}
		layers, err = loadLayers(paths)
	}
	if err != nil {
		return nil, err
	}
	return assemble(r.Cmd, layers)
}

// paths names the folder of each layer, the system's first, by all that is in
// it and below.
func (r Recipe) paths(dir, sys string) []string {
	h := sha256.New()
	fmt.Fprintf(h, "1 %q", sys)
	path := func() string { return filepath.Join(dir, hex.EncodeToString(h.Sum(nil)[:8])) }
	paths := []string{path()}
	for _, s := range r.Steps {
		fmt.Fprintf(h, " %q %q", s.Name, s.Script)
		paths = append(paths, path())
	}
	return paths
}

// build makes the layers that are missing at paths, above those that are there.
func (r Recipe) build(ctx context.Context, sys string, paths []string) (err error) {
	work, err := os.MkdirTemp("", "image") // not in the cache: it may be on any file system
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	b := &builder{dir: work}
	for i, path := range paths {
		name := "base"
		if i > 0 {
			name = r.Steps[i-1].Name
		}
		l, err := loadLayer(path)
		switch {
		case err == nil:
			err = b.unpack(ctx, name, l)
		case !errors.Is(err, fs.ErrNotExist):
		case i == 0:
			err = b.base(ctx, sys)
		default:
			err = b.step(ctx, r.Steps[i-1])
		}
		if err == nil && l == nil {
			err = storeLayer(path, b.layers[len(b.layers)-1])
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", name, err)
		}
	}
	return nil
}

// unpack puts a finished layer below those that are still to be made.
func (b *builder) unpack(ctx context.Context, name string, l *cachedLayer) error {
	upper := filepath.Join(b.dir, name, "upper")
	if err := os.MkdirAll(upper, 0o755); err != nil {
		return err
	}
	tar, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer tar.Close()
	parents := slices.Clone(b.uppers)
	slices.Reverse(parents)
	_, err = archive.Apply(ctx, upper, tar,
		archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(parents))
	b.uppers = append(b.uppers, upper)
	return err
}

// cachedLayer is a layer in a folder: its blob, and layer.json with what is
// below, so that nothing has to be read to know it. It implements v1.Layer.
type cachedLayer struct {
	Blob      v1.Hash `json:"digest"`
	Tar       v1.Hash `json:"diff_id"`
	BlobBytes int64   `json:"size"`
	TarBytes  int64   `json:"uncompressed_size"`

	path string
}

var _ v1.Layer = (*cachedLayer)(nil)

func (l *cachedLayer) Digest() (v1.Hash, error)            { return l.Blob, nil }
func (l *cachedLayer) DiffID() (v1.Hash, error)            { return l.Tar, nil }
func (l *cachedLayer) Size() (int64, error)                { return l.BlobBytes, nil }
func (l *cachedLayer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (l *cachedLayer) Compressed() (io.ReadCloser, error) {
	return os.Open(filepath.Join(l.path, "blob"))
}
func (l *cachedLayer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(l.path, "blob"))
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}

func loadLayers(paths []string) ([]v1.Layer, error) {
	var layers []v1.Layer
	for _, p := range paths {
		l, err := loadLayer(p)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return layers, nil
}

func loadLayer(path string) (*cachedLayer, error) {
	b, err := os.ReadFile(filepath.Join(path, "layer.json"))
	if err != nil {
		return nil, err
	}
	l := &cachedLayer{path: path}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// storeLayer copies a layer into its folder, which appears as a whole.
func storeLayer(path string, from v1.Layer) (err error) {
	tmp := path + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return err
	}
	l := &cachedLayer{}
	if l.Blob, err = from.Digest(); err != nil {
		return err
	}
	if l.Tar, err = from.DiffID(); err != nil {
		return err
	}
	blob, err := from.Compressed()
	if err != nil {
		return err
	}
	defer blob.Close()
	f, err := os.Create(filepath.Join(tmp, "blob"))
	if err != nil {
		return err
	}
	defer f.Close()
	if l.BlobBytes, err = io.Copy(f, blob); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	tar, err := from.Uncompressed()
	if err != nil {
		return err
	}
	defer tar.Close()
	if l.TarBytes, err = io.Copy(io.Discard, tar); err != nil {
		return err
	}
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Unpacked is the number of bytes of all layers' tars, of an image that Build
// returned.
func Unpacked(img v1.Image) (int64, error) {
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	var n int64
	for _, l := range layers {
		c, ok := l.(*cachedLayer)
		if !ok {
			return 0, fmt.Errorf("layer of type %T was not built from a recipe", l)
		}
		n += c.TarBytes
	}
	return n, nil
}
