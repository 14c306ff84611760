package snapshotter

import (
	"context"
	// The digests in labels are checked, for which their algorithms must be linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// recordLabel is the private label of a served snapshot; its value is a record. It lies outside of
// the prefix containerd.io/snapshot/ so that it cannot come from an image's annotations, which
// containerd hands on as labels.
const recordLabel = "mica/served"

// record is what a served snapshot refers to, and suffices to mount the layer again after a
// restart. It changes only where its layer turns out not to be what its diffID names, or one under
// it (see admit).
type record struct {
	Ref      string        `json:"ref"`
	Manifest digest.Digest `json:"manifest"`
	Layer    digest.Digest `json:"layer"`
	DiffID   digest.Digest `json:"diffID,omitempty"`
	Dir      string        `json:"dir"`
	// Former are layers that the snapshot referred to before: containers that run may show them.
	Former []digest.Digest `json:"former,omitempty"`
}

// layer returns what Layers.Mount is to be asked for again.
func (r *record) layer() Layer {
	return Layer{Ref: r.Ref, Manifest: r.Manifest, Digest: r.Layer, DiffID: r.DiffID}
}

// encode returns the value of recordLabel.
func (r *record) encode() (string, error) {
	b, err := json.Marshal(r)
	return string(b), err
}

// recordOf returns the record of a snapshot, nil for an ordinary one.
func recordOf(info snapshots.Info) (*record, error) {
	value, ok := info.Labels[recordLabel]
	if !ok {
		return nil, nil
	}
	var r record
	if err := json.Unmarshal([]byte(value), &r); err != nil {
		return nil, fmt.Errorf("read label %s of snapshot %s: %w", recordLabel, info.Name, err)
	}
	if err := errors.Join(r.Layer.Validate(), checkDir(r.Dir)); err != nil {
		return nil, fmt.Errorf("read label %s of snapshot %s: %w", recordLabel, info.Name, err)
	}
	return &r, nil
}

// BlobOf returns the digest of the blob whose files a snapshot shows; "": mica does not serve it.
// The blob need not be the image's own, because a chain is the same in any compression.
func BlobOf(info snapshots.Info) (digest.Digest, error) {
	r, err := recordOf(info)
	if r == nil {
		return "", err
	}
	return r.Layer, nil
}

// collectOptions applies what a caller asks of a snapshot, without the private label, which only
// this package sets.
func collectOptions(opts []snapshots.Opt) (snapshots.Info, error) {
	info := snapshots.Info{Labels: map[string]string{}}
	for _, o := range opts {
		if err := o(&info); err != nil {
			return snapshots.Info{}, err
		}
	}
	delete(info.Labels, recordLabel)
	return info, nil
}

// request is the layer that a Prepare is about, and the chain ID under which containerd looks for
// it.
type request struct {
	layer  Layer
	target digest.Digest
}

// annotated says whether the labels of a Prepare name the layer and its image, as containerd's
// AppendInfoHandlerWrapper and its transfer service set them.
func annotated(labels map[string]string) bool {
	for _, l := range []string{
		snapshotters.TargetRefLabel, snapshotters.TargetLayerDigestLabel,
		snapshotters.TargetManifestDigestLabel,
	} {
		if labels[l] == "" {
			return false
		}
	}
	return true
}

// parseRequest reads the labels of a Prepare that are annotated. Labels come from the image's
// manifest where containerd did not set them, so nothing in them is taken for true that the chain
// ID contradicts.
func parseRequest(target digest.Digest, labels map[string]string) (request, error) {
	r := request{target: target, layer: Layer{Ref: labels[snapshotters.TargetRefLabel]}}
	for label, to := range map[string]*digest.Digest{
		snapshotters.TargetLayerDigestLabel:    &r.layer.Digest,
		snapshotters.TargetManifestDigestLabel: &r.layer.Manifest,
	} {
		d, err := digest.Parse(labels[label])
		if err != nil {
			return request{}, fmt.Errorf("read label %s: %w", label, err)
		}
		*to = d
	}
	var err error
	if r.layer.DiffID, err = diffIDOf(labels); err != nil {
		return request{}, err
	}
	// The list only helps to start early: what cannot be read in it is left out.
	for value := range strings.SplitSeq(labels[snapshotters.TargetImageLayersLabel], ",") {
		if d, err := digest.Parse(value); err == nil {
			r.layer.Image = append(r.layer.Image, d)
		}
	}
	return r, nil
}

// diffIDOf returns the diffID that containerd has set, "" where it has not.
func diffIDOf(labels map[string]string) (digest.Digest, error) {
	value := labels[snapshots.LabelSnapshotDiffID]
	if value == "" {
		return "", nil
	}
	d, err := digest.Parse(value)
	if err != nil {
		return "", fmt.Errorf("read label %s: %w", snapshots.LabelSnapshotDiffID, err)
	}
	return d, nil
}

// requests returns the layers that a Prepare with this key, of a snapshot that will have the chain
// target, may be about: the one that its labels name, or else, for each of containerd's images that
// claim the chain, the one that makes it. The first is the one that is being pulled. An error tells
// of one image.
func (s *Snapshotter) requests(
	ctx context.Context, key string, target digest.Digest, labels map[string]string,
) iter.Seq2[request, error] {
	return func(yield func(request, error) bool) {
		if annotated(labels) {
			yield(parseRequest(target, labels))
			return
		}
		diffID, err := diffIDOf(labels)
		if err != nil {
			yield(request{}, err)
			return
		}
		for image, err := range s.claiming(ctx, scope(key, labels), target) {
			at := slices.Index(image.Chains, target)
			if err == nil && (at < 0 || at >= len(image.Layers)) {
				err = fmt.Errorf("image %s does not say which layer makes the chain",
					image.Manifest)
			}
			if err != nil {
				if !yield(request{}, err) {
					return
				}
				continue
			}
			for _, ref := range image.Refs {
				l := Layer{
					Ref: ref, Manifest: image.Manifest, Digest: image.Layers[at], DiffID: diffID,
					Image: image.Layers[at:],
				}
				if !yield(request{l, target}, nil) {
					return
				}
			}
		}
	}
}

// claiming returns the images that claim a chain.
func (s *Snapshotter) claiming(
	ctx context.Context, in Scope, target digest.Digest,
) iter.Seq2[Image, error] {
	if s.images == nil || in.Namespace == "" {
		return func(func(Image, error) bool) {}
	}
	return s.images.Claiming(ctx, in, target)
}

// checkChain reports whether a layer with this diffID, on a parent with this chain ID ("" for
// none), makes the target.
func checkChain(target, diffID digest.Digest, parent string) error {
	chain := diffID
	if parent != "" {
		chain = identity.ChainID([]digest.Digest{digest.Digest(parent), diffID})
	}
	if chain != target {
		return fmt.Errorf("diffID %s on chain %q is chain %s, not %s as asked for", diffID, parent,
			chain, target)
	}
	return nil
}
