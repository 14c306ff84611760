package snapshotter

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/opencontainers/go-digest"
)

// ErrUnavailable is wrapped by errors of Layers.Mount that mean: this layer cannot be served, and
// trying again at once will not help. The layer then becomes an ordinary snapshot, which containerd
// fills.
var ErrUnavailable = errors.New("layer cannot be served")

// ErrDisproved is wrapped by errors of Layers that mean: the layer's bytes are known not to be
// those of the diffID that its repository claims for it. It is not tried again.
var ErrDisproved = errors.New("layer is not what its diffID names")

// Layer is one layer of an image, as containerd's labels name it.
type Layer struct {
	Ref      string        // the image's reference, as the user gave it
	Manifest digest.Digest // of the image's manifest
	Digest   digest.Digest // of the layer's blob
	// DiffID is the digest of the layer's uncompressed tar. It is known from containerd 2.3 on, and
	// for the lowest layer of an image; otherwise "".
	DiffID digest.Digest
	// Image holds the blobs of this layer and of those above it, lowest first. A long list is cut
	// short by containerd. Nil when the layer is mounted again after a restart. See Starting.
	Image []digest.Digest
	// Dir is the directory that a snapshot has of this layer, maybe from a former version of
	// Layers: Mount has to return it. "" when there is no snapshot yet.
	Dir string
}

// Below is a layer under another one.
type Below struct {
	Digest digest.Digest // of its blob; "" where containerd has unpacked it
	Dir    string        // shows it
}

// Layers makes layers appear as directories. Calls may run in parallel, for the same layer too; but
// Remove of a layer never runs at the same time as Mount of that layer.
type Layers interface {
	// Mount returns the read-only directory that shows the layer, and its size. The layers below
	// are those under it, topmost first, and all mounted: a directory that the layer's tar implies
	// but does not mention shows the attributes that it has there. A layer that is below itself
	// gets a directory of its own for each time, and where no layer is below there are no
	// whiteouts, as then containerd makes none.
	//
	// Mount is idempotent, and the same call returns the same directory. The directory's path is
	// absolute and holds none of the characters : , \ and ", which mean something else to
	// overlayfs. An error that wraps ErrUnavailable says that this layer cannot be served, and why.
	//
	// The directories should be short and lie close together: containerd shortens their common part
	// only, to fit all of an image into one page of mount options. And to map IDs it maps all that
	// is mounted anywhere below the deepest directory that holds all lower directories, which fails
	// if one mount there cannot be mapped. So other mounts, such as the FUSE mounts of layers'
	// devices, belong elsewhere.
	Mount(ctx context.Context, l Layer, below []Below) (Mounted, error)

	// Promise predicts what Mount will return for the same layer, DiffID included, before the layer
	// can be mounted; ok is false if that is not certain. The layers below need not be mounted.
	// Promise may wait for the network, less long than Mount. The directory does not exist until
	// Mount has returned.
	Promise(ctx context.Context, l Layer, below []Below) (m Mounted, ok bool)

	// Displaced returns those of the directories that Mount returned which do not show their layer
	// any more, because somebody has unmounted it, say. It is quick.
	Displaced(dirs []string) []string

	// Starting tells that the snapshot with this key is about to be mounted: a container starts. top
	// is the topmost served layer under it, and Image of top all of them. It does not block.
	Starting(key string, top Layer)

	// Remove gives up a layer that no snapshot refers to any more: all directories that Mount
	// returned for it. Removing what is not there is no error. A power cut can make a Snapshotter
	// forget a layer that it has no snapshot of: Layers is to give up by itself, after a start,
	// what no call of Mount has asked for when Restore has returned.
	Remove(ctx context.Context, layer digest.Digest) error

	// Trust says whether a layer is proved, and whether it is forged. It is quick. Proved: it was
	// compared with its diffID as a whole, and shows what it is; else at most a repository's word
	// says that what it shows is its own. Forged: it has once shown other files than it has; layers
	// above it may be mounted elsewhere than they were, because they inherit attributes from it.
	Trust(l Layer) (proved, forged bool)

	// Vouched says whether the word of l.Ref's repository is good for a mounted layer, or none is
	// needed. It may ask the registry, and says no where that does not answer. An error that wraps
	// ErrDisproved says that the repository's word was false.
	Vouched(ctx context.Context, l Layer) (bool, error)

	// Prove returns nil when a mounted layer is known to be what its diffID names, and shown so to
	// whoever mounts it from then on. It fetches what is missing of it.
	Prove(ctx context.Context, layer digest.Digest) error
}

// Image is an image of containerd's, as its manifest and its config name it.
type Image struct {
	Refs     []string // where it was pulled from, one for each repository; none: not known
	Manifest digest.Digest
	Layers   []digest.Digest // blobs, lowest first; none: not known
	Chains   []digest.Digest // chain IDs: of each layer with those under it; none: not known
}

// layer returns the blob that makes the chain from the one under it, "" where that is not known.
func (i Image) layer(chain digest.Digest) digest.Digest {
	if at := slices.Index(i.Chains, chain); at >= 0 && at < len(i.Layers) {
		return i.Layers[at]
	}
	return ""
}

// Scope says which of containerd's images are meant.
type Scope struct {
	Namespace string // "": it is not known
	// Unnamed: manifests that no image has count, too.
	Unnamed bool
	Known   []string // references, which tell of registries' ports
}

// Images are containerd's images.
type Images interface {
	// With returns the images whose layers make the chain, or, where there are none, those that
	// have layers above it.
	With(ctx context.Context, in Scope, chain digest.Digest) ([]Image, error)
	// Claiming returns the images, those that were pulled last first, that containerd has or is
	// pulling and whose config claims the chain for some of their layers. With an error comes an
	// image that has no references, or none.
	Claiming(ctx context.Context, in Scope, chain digest.Digest) iter.Seq2[Image, error]
	// Named returns the image with this manifest, which containerd may still be pulling as ref.
	Named(ctx context.Context, namespace, ref string, manifest digest.Digest) (Image, error)
}

// Blobs hears which layers stand for their blobs: containerd does not download those.
type Blobs interface {
	// Asked tells that containerd asks for a layer to be served. It does not block.
	Asked(layer digest.Digest)
	// Served tells that a namespace has a snapshot of the layer: containerd will soon be told so.
	// It may block for as long as it takes to tell containerd of the blob.
	Served(ctx context.Context, namespace string, l Layer)
	// Refused tells that a layer is not to stand for its blob: containerd has to unpack it, then
	// above says that it has to unpack those above too, or its snapshot is another blob's. It does
	// not block.
	Refused(layer digest.Digest, above bool)
}

// Mounted is a layer that can be read.
type Mounted struct {
	Dir string // where it is to be seen
	// DiffID is the digest of the uncompressed tar that Dir shows, or "" where Layers does not
	// know. It has to agree with the chain ID under which containerd asked for the layer: an image
	// may name one layer's blob and another layer's diffID, and would otherwise replace the content
	// of that other layer in every image that shares it.
	DiffID digest.Digest
	Size   int64 // bytes of the whole layer, unpacked: it does not grow as the layer fills
	Inodes int64 // of the whole layer
}
