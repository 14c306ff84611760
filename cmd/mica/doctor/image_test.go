package doctor

import (
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// TestImage: what keeps an image from being lazy is an error, and nothing else is.
func TestImage(t *testing.T) {
	layer := func(mediaType string, size int64, indexed bool) admin.ImageLayer {
		return admin.ImageLayer{Layer: digest.FromString(mediaType), MediaType: mediaType, Size: size,
			Indexed: indexed}
	}
	gzip, zstd := ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd
	good := admin.Image{
		Ref: "r.test/a:1", TrustsIndexes: true, Ranges: true, Index: digest.FromString("index"),
		Profile: digest.FromString("profile"),
		Layers:  []admin.ImageLayer{layer(gzip, 5e6, true), layer(gzip, 100, false)},
	}
	for name, tc := range map[string]struct {
		change func(i *admin.Image)
		mode   string
		fails  string // the check that fails; "": none
	}{
		"good":    {func(*admin.Image) {}, "auto", ""},
		"local":   {func(*admin.Image) {}, "local", "mode"},
		"refused": {func(i *admin.Image) { i.Error = "refused" }, "auto", "image"},
		"no index": {func(i *admin.Image) {
			i.Index, i.Layers[0].Indexed = "", false
		}, "auto", "index"},
		"bad index":  {func(i *admin.Image) { i.Index, i.IndexError = "", "corrupt" }, "auto", "index"},
		"distrust":   {func(i *admin.Image) { i.TrustsIndexes = false }, "auto", "index"},
		"left out":   {func(i *admin.Image) { i.Layers[0].Indexed = false }, "auto", "layer"},
		"zstd":       {func(i *admin.Image) { i.Layers[1] = layer(zstd, 5e6, false) }, "auto", "layer"},
		"small zstd": {func(i *admin.Image) { i.Layers[1] = layer(zstd, 5e3, false) }, "auto", ""},
		"encrypted": {func(i *admin.Image) { i.Layers[1] = layer(gzip+"+encrypted", 10, false) }, "auto",
			"layer"},
		"foreign": {func(i *admin.Image) {
			i.Layers[1] = layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", 9, false)
		}, "auto", "layer"},
		"no ranges":  {func(i *admin.Image) { i.Ranges = false }, "auto", "ranges"},
		"no blob":    {func(i *admin.Image) { i.RangeError = "gone" }, "auto", "ranges"},
		"no profile": {func(i *admin.Image) { i.Profile = "" }, "auto", ""},
	} {
		t.Run(name, func(t *testing.T) {
			i := good
			i.Layers = append([]admin.ImageLayer{}, good.Layers...)
			tc.change(&i)
			var f Findings
			f.image(i, tc.mode)
			failed := ""
			for _, x := range f {
				if x.Status == "error" {
					failed += x.Check
				}
			}
			if failed != tc.fails {
				t.Errorf("%q fails, want %q: %+v", failed, tc.fails, f)
			}
		})
	}
}
