package snapshotter

import (
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
)

func TestParseRequest(t *testing.T) {
	img := imageOf("example.org/app@sha256:abc", "base", "app", "top")
	with := func(key, value string) map[string]string {
		labels := img.labels(1)
		labels[key] = value
		return labels
	}
	for _, tc := range []struct {
		name   string
		labels map[string]string
		image  []digest.Digest
		ok     bool
	}{
		{"all", img.labels(1), img.layers[1:], true},
		{"no diffID", with(snapshots.LabelSnapshotDiffID, ""), img.layers[1:], true},
		{"bad diffID", with(snapshots.LabelSnapshotDiffID, "sha256:12"), nil, false},
		{"no list", with(snapshotters.TargetImageLayersLabel, ""), nil, true},
		{"list with rubbish",
			with(snapshotters.TargetImageLayersLabel,
				"x,"+img.layers[2].String()+",sha256:"), img.layers[2:], true},
		{"bad layer", with(snapshotters.TargetLayerDigestLabel, "sha256:../../etc"), nil, false},
		{"bad manifest",
			with(snapshotters.TargetManifestDigestLabel,
				"md5:"+strings.Repeat("0", 32)), nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := parseRequest(img.chains[1], tc.labels)
			if (err == nil) != tc.ok {
				t.Fatalf("err %v", err)
			}
			if err != nil {
				return
			}
			if r.layer.Digest != img.layers[1] || r.layer.Manifest != img.manifest() ||
				r.layer.Ref != img.ref || r.target != img.chains[1] {
				t.Errorf("%+v", r)
			}
			if len(r.layer.Image) != len(tc.image) || len(tc.image) > 0 &&
				r.layer.Image[0] != tc.image[0] {
				t.Errorf("Image = %v, want %v", r.layer.Image, tc.image)
			}
		})
	}
}

func FuzzParseRequest(f *testing.F) {
	labels := imageOf("image", "base", "app").labels(0)
	f.Add(labels[snapshots.LabelSnapshotDiffID], labels[snapshotters.TargetRefLabel],
		labels[snapshotters.TargetManifestDigestLabel], labels[snapshotters.TargetLayerDigestLabel], labels[snapshotters.TargetImageLayersLabel])
	f.Fuzz(func(t *testing.T, diffID, ref, manifest, layer, list string) {
		r, err := parseRequest("", map[string]string{
			snapshots.LabelSnapshotDiffID:          diffID,
			snapshotters.TargetRefLabel:            ref,
			snapshotters.TargetManifestDigestLabel: manifest,
			snapshotters.TargetLayerDigestLabel:    layer,
			snapshotters.TargetImageLayersLabel:    list,
		})
		if err != nil {
			return
		}
		// All of these become parts of paths.
		for _, d := range append(r.layer.Image, r.layer.Digest, r.layer.Manifest) {
			if err := d.Validate(); err != nil || strings.ContainsAny(d.String(), "/\x00") {
				t.Errorf("digest %q: %v", d, err)
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	r := record{Ref: "image", Manifest: digest.FromString("m"), Layer: digest.FromString("l"),
		Dir: "/var/lib/mica/m/1"}
	value, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Fuzz(func(t *testing.T, value string) {
		r, err := recordOf(snapshots.Info{Labels: map[string]string{recordLabel: value}})
		if err != nil {
			return
		}
		if err := checkDir(r.Dir); err != nil {
			t.Error(err)
		}
		if again, err := r.encode(); err != nil {
			t.Error(err)
		} else if r2, err := recordOf(snapshots.Info{Labels: map[string]string{recordLabel: again}}); err != nil || !reflect.DeepEqual(r2, r) {
			t.Errorf("%+v became %+v, %v", r, r2, err)
		}
	})
}

func TestHostID(t *testing.T) {
	for mapping, want := range map[string]int{
		"":                      0,
		"0:1000:1":              1000,
		"0:4294967294:1":        4294967294,
		"5:9:10,0:1000:5":       1000,
		"0:1:0,0:1000:1":        1000,
		"0:1000:1,0:2000:1":     1000,
		"1:1000:65536":          -1,
		"0:1000:0":              -1,
		"0:1000":                -1,
		"0:1000:1:1":            -1,
		"0:1000:1,":             -1,
		"0:-1:1":                -1,
		"0:4294967295:1":        -1,
		"0:99999999999999999:1": -1,
		"a:b:c":                 -1,
		"0:1000:1,bad":          -1,
	} {
		got, err := hostID(mapping)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("hostID(%q) = %d, %v; want %d", mapping, got, err, want)
		}
	}
}

func FuzzHostID(f *testing.F) {
	f.Add("0:1000:65536,70000:5:1")
	f.Fuzz(func(t *testing.T, mapping string) {
		if id, err := hostID(mapping); err == nil && (id < 0 || id >= 1<<32-1) {
			t.Errorf("hostID(%q) = %d", mapping, id)
		}
	})
}
