package publish

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/remote/layout"
)

// TestIndexCreateNewest: a new index is the newest though an older one says that it is of the
// future.
func TestIndexCreateNewest(t *testing.T) {
	dir := t.TempDir()
	m := layoutImage(t, dir)
	l, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	old := artifact.New(digest.FromString("trees"), 5, digest.FromString("windows"), 7)
	future := time.Now().Add(time.Hour)
	if _, err := l.Image("").PushReferrer(t.Context(), m, old.Manifest(m, future)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is there
		if out, err := tryMica(t, "index", "create", "--push", dir); err != nil {
			t.Fatalf("%s, %v", out, err)
		}
		list, err := l.Image("").Referrers(t.Context(), m.Digest, artifact.Type)
		if err != nil {
			t.Fatal(err)
		}
		list = artifact.Of(artifact.Type, list)
		if n := len(list); n != 2 || list[0].Annotations["dev.mica.index.trees.size"] == "5" {
			t.Errorf("the newest of %d indexes is the one from the future", n)
		}
	}
}
