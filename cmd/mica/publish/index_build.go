package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/index/targz"
	"github.com/mica-snapshotter/mica/index/tartree"
)

// built is an image's index in two temporary files.
type built struct {
	trees, windows       *os.File
	treesSum, windowsSum digest.Digest
	treesLen, windowsLen int64
	layers               int
	told                 []artifact.Layer
	skipped              []string
}

// build scans the image's layers, as many at once as there are cores for.
func (c *indexCreate) build(
	ctx context.Context, im reach.Image, m reach.Manifest, dir string,
) (*built, error) {
	scanned := make([]*scannedLayer, len(m.Layers))
	defer func() {
		for _, s := range scanned {
			s.close()
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(runtime.GOMAXPROCS(0)/2, 1))
	for i, l := range m.Layers {
		name := fmt.Sprintf("layer %d/%d %s", i+1, len(m.Layers), show.Short(l.Digest.String()))
		bar := c.bars.Add(name, l.Size)
		g.Go(func() (err error) {
			defer bar.Done()
			began := time.Now()
			if scanned[i], err = c.scan(ctx, im, l, dir, bar); err == nil {
				c.sayf("%s: %s read in %.1f s", name, show.Bytes(bar.Bytes()),
					time.Since(began).Seconds())
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	b := &built{}
	var in []bundle.Input
	for _, s := range scanned {
		if s.skipped != "" {
			b.skipped = append(b.skipped, s.skipped)
			continue
		}
		in = append(in, s.input())
		x, err := index.Open(s.index, s.size)
		if err != nil {
			return nil, err
		}
		l, ok, err := artifact.Tell(x)
		if err != nil {
			return nil, err
		}
		if ok && len(b.told) < artifact.MaxLayers {
			b.told = append(b.told, l)
		}
	}
	if len(in) == 0 {
		return nil, show.WithCode(show.Nothing, fmt.Errorf("no layer of %s can be indexed: %s",
			im.Ref(), strings.Join(b.skipped, "; ")))
	}
	b.layers = len(in)
	return b, b.write(dir, in)
}

// scannedLayer is one layer's index in two temporary files.
type scannedLayer struct {
	index, windows *os.File
	size           int64
	skipped        string // why there is none
}

func (s *scannedLayer) close() {
	if s != nil && s.index != nil {
		s.index.Close()
		s.windows.Close()
	}
}

func (s *scannedLayer) input() bundle.Input {
	return bundle.Input{Index: s.index, Size: s.size,
		Windows: io.NewSectionReader(s.windows, 0, 1<<62)}
}

func (c *indexCreate) scan(
	ctx context.Context, im reach.Image, l ocispec.Descriptor, dir string, bar *show.Bar,
) (*scannedLayer, error) {
	if strings.HasSuffix(l.MediaType, "+encrypted") {
		return &scannedLayer{skipped: fmt.Sprintf("layer %s: it is encrypted", l.Digest)}, nil
	}
	body, err := im.Open(ctx, l)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	s := &scannedLayer{}
	if s.index, err = os.CreateTemp(dir, "index-"); err != nil {
		return nil, err
	}
	if s.windows, err = os.CreateTemp(dir, "windows-"); err != nil {
		return nil, errors.Join(err, s.index.Close())
	}
	draft, err := targz.Scan(ctx, bar.Reader(body),
		targz.Options{Windows: s.windows, SpanSize: c.span})
	if (errors.Is(err, targz.ErrNotIndexable) || errors.Is(err,
		tartree.ErrLowest)) && ctx.Err() == nil {
		s.close()
		return &scannedLayer{skipped: fmt.Sprintf("layer %s: %v", l.Digest, err)}, nil
	}
	var bad *targz.Malformed
	if errors.As(err, &bad) && bad.Layer != l.Digest {
		err = fmt.Errorf("its bytes have digest %s: the registry or a proxy sent something "+
			"else: %w",
			bad.Layer, err)
	}
	if err == nil && draft.Layer != l.Digest {
		err = fmt.Errorf("its bytes have digest %s", draft.Layer)
	}
	if err == nil {
		s.size, err = index.Write(s.index, draft)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("layer %s of %s: %w", l.Digest, im.Ref(), err)
	}
	return s, nil
}

// write makes the bundle's two blobs.
func (b *built) write(dir string, in []bundle.Input) (err error) {
	if b.trees, err = os.CreateTemp(dir, "trees-"); err != nil {
		return err
	}
	if b.windows, err = os.CreateTemp(dir, "windows-"); err != nil {
		return err
	}
	trees, windows := digest.Canonical.Digester(), digest.Canonical.Digester()
	if err := bundle.Write(io.MultiWriter(b.trees, trees.Hash()),
		io.MultiWriter(b.windows, windows.Hash()), in); err != nil {
		return err
	}
	b.treesSum, b.windowsSum = trees.Digest(), windows.Digest()
	if b.treesLen, err = b.trees.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	b.windowsLen, err = b.windows.Seek(0, io.SeekEnd)
	return err
}

func (b *built) close() {
	b.trees.Close()
	b.windows.Close()
}
