package snapshotter

import (
	"context"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

// toldBlobs notes what it is told.
type toldBlobs struct {
	served, refused, above []digest.Digest
}

func (b *toldBlobs) Asked(digest.Digest) {}

func (b *toldBlobs) Served(_ context.Context, _ string, l Layer) {
	b.served = append(b.served, l.Digest)
}

func (b *toldBlobs) Refused(d digest.Digest, above bool) {
	if b.refused = append(b.refused, d); above {
		b.above = append(b.above, d)
	}
}

// TestBlobs: it is told which layers stand for their blobs, at a pull and where the snapshot is
// there. An image that names another blob for the chain of a served layer is not believed.
func TestBlobs(t *testing.T) {
	told := &toldBlobs{}
	s := open(t, t.TempDir(), newFakeLayers(t), WithBlobs(told))
	img := imageOf("namespace/app", "base", "lib")
	mustPull(t, s, img)
	if !slices.Equal(told.served, img.layers) || told.refused != nil {
		t.Errorf("after a pull: %+v", told)
	}
	forged := imageOf("namespace/forged", "base", "lib")
	forged.layers[1] = digest.FromString("what a pull is yet to bring")
	*told = toldBlobs{}
	mustPull(t, s, forged)
	if !slices.Equal(told.served, img.layers[:1]) ||
		!slices.Equal(told.refused, forged.layers[1:]) || told.above != nil {
		t.Errorf("after one that names another blob: %+v", told)
	}
}

// TestBlobsRefused: of a layer that containerd unpacks it is told that those above are, too.
func TestBlobsRefused(t *testing.T) {
	told := &toldBlobs{}
	layers := newFakeLayers(t)
	layers.hook(func(context.Context, Layer) (Mounted, error) { return Mounted{}, ErrUnavailable })
	s := open(t, t.TempDir(), layers, WithBlobs(told))
	img := imageOf("namespace/app", "base")
	if _, unpacked, err := pull(t.Context(), s, img); err != nil || unpacked != 1 {
		t.Fatalf("%d unpacked, %v", unpacked, err)
	}
	if told.served != nil || !slices.Equal(told.above, img.layers) {
		t.Errorf("%+v", told)
	}
}
