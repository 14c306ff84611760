package pull

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index/artifact"
)

// TestBringer: a layer that has come is promised as long as its pull has others to bring, below
// which it may have to wait to be mounted.
func TestBringer(t *testing.T) {
	r := Request{Ref: "r.test/a:1", Manifest: digest.FromString("m"), Layer: digest.FromString("l")}
	a := &Pulls{under: map[key]*Pull{}}
	if a.busyPull(r) != nil {
		t.Error("there is no pull")
	}
	busy := &job{done: make(chan struct{})}
	p := &Pull{all: a, jobs: []*job{busy}}
	a.under[keyOf(r.Ref, r.Manifest)] = p
	if a.busyPull(r) != nil {
		t.Error("the pull has not brought the layer")
	}
	p.brought = append(p.brought, r.Layer)
	if a.busyPull(r) != p {
		t.Error("the pull has brought the layer, and is busy")
	}
	close(busy.done)
	if a.busyPull(r) != nil {
		t.Error("the pull has brought all")
	}
}

// TestNearRegistry: of a registry that is near no layer is promised.
func TestNearRegistry(t *testing.T) {
	x := artifact.Index{
		Layers: []artifact.Layer{{
			Digest: digest.FromString("layer"), DiffID: digest.FromString("tar"), Size: 512,
			Inodes: 1,
		}},
	}
	indexes := []ocispec.Descriptor{{
		Annotations: x.Manifest(ocispec.Descriptor{}, time.Time{}).Annotations,
	}}
	p := &Pull{}
	if got := p.layersTold(indexes, promiseFrom); len(got) != 1 {
		t.Errorf("of one far away %v are known, want a layer", got)
	}
	if got := p.layersTold(indexes, promiseFrom-1); len(got) != 0 {
		t.Errorf("of one that is near %v are known, want none", got)
	}
}

// TestBrokenPromise: that a layer did not come is forgotten after a while, and when it comes.
func TestBrokenPromise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s promises
		d := digest.FromString("layer")
		breaks := func() {
			s.add(d)
			s.settle(d, errors.New("it did not come"))
			if !s.failed(d) {
				t.Error("promised again at once")
			}
		}
		breaks()
		time.Sleep(brokenFor)
		if s.failed(d) {
			t.Error("not promised for ever")
		}
		breaks()
		s.settle(d, nil)
		if s.failed(d) {
			t.Error("not promised though it has come")
		}
	})
}

// TestPromisedAgain: a layer whose coming has failed once is promised again when it has come, or
// was removed.
func TestPromisedAgain(t *testing.T) {
	var p promises
	d := digest.FromString("layer")
	p.settle(d, nil)
	p.add(d)
	p.settle(d, errors.New("no registry"))
	if !p.failed(d) {
		t.Error("it is promised again at once")
	}
	p.settle(d, nil)
	if p.failed(d) {
		t.Error("it is never promised again")
	}
}
