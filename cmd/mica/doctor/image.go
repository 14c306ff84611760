package doctor

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/images"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
)

// smallLayer is the size below which a layer may come whole without a word, bytes.
const smallLayer = 1 << 20

// checkImage has micad look at an image, and says whether it would be lazy.
func checkImage(ctx context.Context, f *Findings, c *admin.Client, ref string) {
	var info admin.Info
	if c.Get(ctx, admin.PathInfo, &info) != nil {
		return // told already
	}
	var i admin.Image
	var g Findings
	if err := c.Get(ctx, admin.PathImage+"?ref="+url.QueryEscape(ref), &i); err != nil {
		f.failure("image", err.Error(), "")
		return
	}
	if g.image(i, info.Mode); g.bad() {
		g.failure("lazy", ref+" is not lazy here", "")
	}
	*f = append(*f, g...)
}

// image says what of an image would not be lazy where micad is in a mode, and why.
func (f *Findings) image(i admin.Image, mode string) {
	if i.Error != "" {
		f.failure("image", i.Error, "micad reads images with credentials and hosts of its own: see "+
			"docs/credentials.md.\nAn image that it cannot read is pulled by containerd, as a whole.")
		return
	}
	f.ok("image", fmt.Sprintf("%s, manifest %s: micad reads it, %d layers", i.Ref, i.Manifest,
		len(i.Layers)))
	if mode == "local" {
		f.failure("mode", "micad's mode is local: every layer is downloaded before a container "+
			"starts", "Set mode = \"auto\" in /etc/micad/config.toml and restart micad.")
	}
	switch {
	case !i.TrustsIndexes:
		f.failure("index", "micad takes no index from a registry (index.trust is \"local\")",
			"Set trust = \"repository\" in section [index] of /etc/micad/config.toml; "+
				"docs/security.md says what that means.")
	case i.IndexError != "":
		f.failure("index", "no index can be used: "+i.IndexError,
			"Make a new one: mica index create --push "+i.Ref)
	case i.Index == "":
		f.failure("index", "the registry has no index of the image: micad downloads its layers whole",
			"mica index create --push "+i.Ref)
	default:
		f.ok("index", fmt.Sprintf("%s, for %d of %d layers", i.Index, indexed(i.Layers), len(i.Layers)))
	}
	f.layers(i)
	switch {
	case i.RangeError != "":
		f.failure("ranges", "no part of a layer can be read: "+i.RangeError, "")
	case !i.Ranges:
		f.failure("ranges", "the registry answers a request for a part of a layer with all of it: "+
			"the first read of a layer downloads it",
			"Use a registry, or a cache in front of it, that honours Range.")
	default:
		f.ok("ranges", "the registry sends parts of layers")
	}
	if i.Profile == "" {
		f.warning("profile", "none is published: a first start fetches as it reads",
			"mica profile record --push "+i.Ref)
	} else {
		f.ok("profile", i.Profile.String())
	}
}

// layers names the layers that come whole though the image has an index, and those that would in
// any case.
func (f *Findings) layers(i admin.Image) {
	for n, l := range i.Layers {
		reason := whyWhole(l.MediaType)
		small := l.Size < smallLayer && !strings.Contains(reason, "containerd")
		if l.Indexed || small || reason == leftOut && i.Index == "" {
			continue
		}
		f.failure("layer", fmt.Sprintf("%d of %d, %s, %s: %s", n+1, len(i.Layers), l.Layer,
			show.Bytes(l.Size), reason), "See "+LimitsPage+"#layer-formats")
	}
}

const leftOut = "the image's index leaves it out"

// whyWhole says why a layer of a media type is not lazy though its image has an index.
func whyWhole(mediaType string) string {
	switch {
	case strings.HasSuffix(mediaType, "+encrypted"):
		return "it is encrypted: containerd downloads it and all above it"
	case images.IsNonDistributable(mediaType):
		return "it is foreign: where the registry lacks it, containerd downloads it and all above it"
	case strings.HasSuffix(mediaType, "zstd"):
		return "zstd cannot be read from the middle"
	}
	return leftOut
}

func indexed(all []admin.ImageLayer) (n int) {
	for _, l := range all {
		if l.Indexed {
			n++
		}
	}
	return n
}
