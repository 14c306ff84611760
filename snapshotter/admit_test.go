package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// fakeImages are the images of all namespaces.
type fakeImages struct {
	all   []Image
	err   error
	asked int   // calls of With
	in    Scope // of the last call
}

func (f *fakeImages) With(
	_ context.Context, in Scope, chain digest.Digest,
) ([]Image, error) {
	var found []Image
	f.asked++
	f.in = in
	for _, i := range f.all {
		if len(i.Chains) > 0 && i.Chains[len(i.Chains)-1] == chain {
			found = append(found, i)
		}
	}
	return found, f.err
}

func (f *fakeImages) Claiming(
	_ context.Context, in Scope, chain digest.Digest,
) iter.Seq2[Image, error] {
	return func(yield func(Image, error) bool) {
		f.in = in
		if f.err != nil {
			yield(Image{}, f.err)
			return
		}
		for _, i := range f.all {
			if slices.Contains(i.Chains, chain) && !yield(i, nil) {
				return
			}
		}
	}
}

func (f *fakeImages) Named(
	_ context.Context, _, ref string, manifest digest.Digest,
) (Image, error) {
	for _, i := range f.all {
		if i.Manifest == manifest {
			i.Refs = []string{ref}
			return i, f.err
		}
	}
	return Image{}, errors.New("no such manifest")
}

// image is what containerd says of a test image.
func (img testImage) image() Image {
	return Image{Refs: []string{img.ref}, Manifest: img.manifest(), Layers: img.layers,
		Chains: img.chains}
}

// word makes layers unproved, with references that vouch for them.
func (f *fakeLayers) word(img testImage, refs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.words == nil {
		f.words, f.diffIDs, f.false = map[digest.Digest]map[string]bool{}, map[digest.Digest]digest.Digest{}, map[digest.Digest]bool{}
	}
	for i, d := range img.layers {
		f.words[d], f.diffIDs[d] = map[string]bool{}, img.diffIDs[i]
		for _, ref := range refs {
			f.words[d][ref] = true
		}
	}
}

// claiming returns an image of other blobs that claims the diffIDs of img.
func claiming(ref string, img testImage, names ...string) testImage {
	evil := imageOf(ref, names...)
	evil.diffIDs, evil.chains = img.diffIDs, img.chains
	return evil
}

func TestAdmit(t *testing.T) {
	victim := imageOf("victim", "base", "app")
	evil := claiming("evil", victim, "base", "forged")
	other := imageOf("other", "base", "app")
	for _, tc := range []struct {
		name   string
		first  testImage   // is pulled, and vouches for its layers
		images []testImage // that containerd has
		err    error       // of containerd
		vouch  []string    // more references that vouch
		false  []digest.Digest
		proofs int
		shows  digest.Digest // the topmost layer
		fails  string
	}{
		{name: "one's own", first: victim, images: []testImage{victim}, shows: victim.layers[1]},
		{name: "another repository vouches", first: victim, images: []testImage{victim, other},
			vouch: []string{"other"}, shows: victim.layers[1]},
		{name: "another repository does not", first: victim, images: []testImage{victim, other},
			proofs: 2, shows: victim.layers[1]},
		{name: "containerd does not answer", first: victim, err: errors.New("gone"), proofs: 2,
			shows: victim.layers[1]},
		{name: "no image has the chain", first: victim, proofs: 2, shows: victim.layers[1]},
		{name: "forged", first: evil, images: []testImage{evil, victim}, vouch: []string{"victim"},
			false: evil.layers[1:], proofs: 2, shows: victim.layers[1]},
		{name: "forged and nobody has it", first: evil,
			images: []testImage{evil, claiming("worse", victim, "base", "worse")},
			vouch:  []string{"worse"}, false: []digest.Digest{evil.layers[1],
				digest.FromString("blob worse")}, fails: "no image on this node"},
		{name: "other blob of the same tar", first: evil, images: []testImage{evil, victim},
			vouch: []string{"victim"},
			false: victim.layers[1:], proofs: 2, shows: evil.layers[1]},
	} {
		t.Run(tc.name, func(t *testing.T) {
			layers, images := newFakeLayers(t), &fakeImages{err: tc.err}
			for _, img := range append([]testImage{victim, evil, other}, tc.images...) {
				layers.word(img, append(tc.vouch, tc.first.ref)...)
			}
			for _, d := range tc.false {
				layers.false[d] = true
			}
			for _, img := range tc.images {
				images.all = append(images.all, img.image())
			}
			root := t.TempDir()
			s := open(t, root, layers, WithImages(images))
			top := mustPull(t, s, tc.first)
			mounts, err := s.Prepare(t.Context(), "ns/1/container", top)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Errorf("mounts %v, %v, want an error with %q", mounts, err, tc.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(mounts); !strings.Contains(got,
				"lowerdir="+layers.path(tc.shows)) {
				t.Errorf("mounts %s, want layer %s at %s", got, tc.shows, layers.path(tc.shows))
			}
			if len(layers.proofs) < tc.proofs || tc.proofs == 0 && len(layers.proofs) > 0 {
				t.Errorf("%d proofs, want %d", len(layers.proofs), tc.proofs)
			}
			// It is remembered: by the snapshot, whoever asks, and over a restart.
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, root, layers, WithImages(images))
			again, err := s.Mounts(t.Context(), "ns/1/container")
			if err != nil || fmt.Sprint(again) != fmt.Sprint(mounts) {
				t.Errorf("after a restart %v, %v, want %v", again, err, mounts)
			}
			if tc.shows != tc.first.layers[1] {
				if used, err := s.usedLayers(t.Context()); err != nil || !used[tc.first.layers[1]] {
					t.Errorf("the former layer, which containers may show, is not kept: %v, %v",
						used, err)
				}
			}
		})
	}
}

// TestAskedOnce: containerd is asked once for a snapshot, as long as its layers are believed as
// they were: an image that is pulled later is not the container's.
func TestAskedOnce(t *testing.T) {
	victim, later := imageOf("victim", "base", "app"), imageOf("later", "base", "app")
	layers, images := newFakeLayers(t), &fakeImages{all: []Image{victim.image()}}
	layers.word(victim, "victim")
	s := open(t, t.TempDir(), layers, WithImages(images))
	top := mustPull(t, s, victim)
	const key = "ns/1/container"
	asked := func(want, proofs int, what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if images.asked != want || len(layers.proofs) != proofs {
			t.Errorf("%s: asked %d times, want %d; %d proofs, want %d",
				what, images.asked, want, len(layers.proofs), proofs)
		}
		images.asked, layers.proofs = 0, nil
	}
	_, err := s.Prepare(t.Context(), key, top)
	asked(1, 0, "prepared", err)
	images.all = append(images.all, later.image())
	_, err = s.Mounts(t.Context(), key)
	asked(0, 0, "mounted", err)
	_, err = s.Prepare(t.Context(), key, top)
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("prepared again: %v", err)
	}
	images.asked, layers.proofs, images.all = 0, nil, images.all[:1]
	layers.word(victim, "victim")
	if err := s.Remove(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	_, err = s.Prepare(t.Context(), key, top)
	asked(1, 0, "another snapshot with that key", err)
	layers.word(victim) // nobody's word
	_, err = s.Mounts(t.Context(), key)
	if images.asked == 0 || len(layers.proofs) == 0 {
		t.Errorf("not believed any more: asked %d times, %d proofs, %v",
			images.asked, len(layers.proofs), err)
	}
}

// TestAdmitUnpacking: a layer that containerd unpacks lies on nothing that its image's repository
// does not vouch for.
func TestAdmitUnpacking(t *testing.T) {
	victim := imageOf("victim", "base", "app")
	evil := claiming("evil", imageOf("victim", "base"), "forged")
	layers := newFakeLayers(t)
	layers.word(evil, "evil")
	layers.word(victim, "victim")
	layers.false[evil.layers[0]] = true
	s := open(t, t.TempDir(), layers,
		WithImages(&fakeImages{all: []Image{evil.image(), victim.image()}}))
	base := mustPull(t, s, evil)
	layers.hook(func(_ context.Context, l Layer) (Mounted, error) {
		if l.Digest == victim.layers[1] {
			return Mounted{}, ErrUnavailable
		}
		return Mounted{}, errDefault
	})
	for key, labels := range map[string]map[string]string{
		"ns/2/extract":     victim.labels(1),
		"ns/3/unannotated": {snapshots.LabelSnapshotRef: victim.chains[1].String()},
	} {
		mounts, err := s.Prepare(t.Context(), key, base, snapshots.WithLabels(labels))
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(mounts)
		if !strings.Contains(got, layers.path(victim.layers[0])) ||
			strings.Contains(got, layers.path(evil.layers[0])) {
			t.Errorf("%s: unpacked on %s", key, got)
		}
	}
}
