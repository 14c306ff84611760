package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// requestTries is how many images and repositories are asked for one layer, where the labels do not
// name one: each may take some seconds.
const requestTries = 3

// errOrdinary: the layer is not to be served, and containerd has to unpack it.
var errOrdinary = errors.New("ordinary snapshot")

// serve commits a snapshot of the layer that makes the chain that the labels name, and returns an
// error that is ErrAlreadyExists. It returns errOrdinary when containerd is to unpack the layer,
// having noted why.
func (s *Snapshotter) serve(ctx context.Context, key, parent string, info snapshots.Info) error {
	log := s.log.With("key", key, "target", info.Labels[snapshots.LabelSnapshotRef])
	if mapped(info.Labels) {
		log.DebugContext(ctx, "ordinary snapshot: its IDs are to be mapped as it is unpacked")
		return errOrdinary
	}
	target, err := digest.Parse(info.Labels[snapshots.LabelSnapshotRef])
	if err != nil {
		log.DebugContext(ctx, "ordinary snapshot: it is not named by a chain ID", "err", err)
		return errOrdinary
	}
	parents, err := s.viewChain(ctx, parent)
	if err != nil {
		return err
	}
	name := prefixOf(key) + servedName(target, parents)
	if found, err := s.exists(ctx, name); err != nil {
		return err
	} else if found {
		s.tellExisting(ctx, key, name, target, info.Labels)
		return existsError(target)
	}
	var first request
	var firstWhy string
	tried := 0
	for req, err := range s.requests(ctx, key, target, info.Labels) {
		if err != nil {
			log.InfoContext(ctx, "ordinary snapshot: an image cannot be asked for its layer", "err", err)
			break
		}
		if s.blobs != nil {
			s.blobs.Asked(req.layer.Digest)
		}
		why := s.refuse(req, parents)
		if why == "" {
			if why, err = s.serveRequest(ctx, name, key, parent, parents, info, req); why == "" {
				if errdefs.IsAlreadyExists(err) {
					s.tellServed(ctx, key, req)
				}
				return err
			}
		}
		if tried++; tried == 1 {
			first, firstWhy = req, why
		}
		if tried == requestTries {
			break
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case tried == 0:
		s.counters.unannotated.Add(1)
		log.DebugContext(ctx, "ordinary snapshot: it is not known which layer of which image it is")
	default:
		s.fallBack(ctx, first, firstWhy)
		if s.blobs != nil {
			s.blobs.Refused(first.layer.Digest, true)
		}
	}
	return errOrdinary
}

// tellServed tells that a namespace, the one that the key names, has a snapshot of a layer.
func (s *Snapshotter) tellServed(ctx context.Context, key string, req request) {
	if in := scope(key, nil); in.Namespace != "" && s.blobs != nil {
		s.blobs.Served(ctx, in.Namespace, req.layer)
	}
}

// tellExisting is tellServed for a snapshot that is there. The labels may name another blob, which
// nobody has compared with anything.
func (s *Snapshotter) tellExisting(
	ctx context.Context, key, name string, target digest.Digest, labels map[string]string,
) {
	if s.blobs == nil {
		return
	}
	served, err := s.Serves(ctx, target)
	if err != nil {
		s.log.WarnContext(ctx, "nobody is told of a layer's blob", "snapshot", name, "err", err)
		return
	}
	for req, err := range s.requests(ctx, key, target, labels) {
		if err == nil {
			s.blobs.Asked(req.layer.Digest)
			if slices.Contains(served, req.layer.Digest) {
				s.tellServed(ctx, key, req)
			} else {
				s.blobs.Refused(req.layer.Digest, false)
			}
		}
		return
	}
}

// Serves returns the layers of which there are served snapshots that make this chain.
func (s *Snapshotter) Serves(ctx context.Context, chain digest.Digest) ([]digest.Digest, error) {
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	var layers []digest.Digest
	for _, info := range all {
		name := strings.TrimPrefix(info.Name, builderPrefix)
		if info.Kind != snapshots.KindCommitted || !strings.HasPrefix(name, servedPrefix) ||
			!strings.HasSuffix(info.Name, "/"+chain.String()) {
			continue
		}
		r, err := recordOf(info)
		if err != nil {
			return nil, err
		}
		if r != nil {
			layers = append(layers, r.Layer)
		}
	}
	return layers, nil
}

// serveRequest is serve for one layer, that of one image. It returns why the layer cannot be
// served, and no error then.
func (s *Snapshotter) serveRequest(
	ctx context.Context, name, key, parent string, parents chain, info snapshots.Info, req request,
) (why string, err error) {
	if req.layer.DiffID == "" && len(parents) == 0 {
		req.layer.DiffID = req.target // the chain ID of one layer is its diffID
	}
	err = s.mountAndCommit(ctx, name, key, parents, info, req)
	if errors.Is(err, ErrDisproved) && len(parents) > 0 {
		// One under it may be to blame, and give way to another.
		defer s.imagesBySnapshot.Delete(key)
		if parents, err = s.admit(ctx, key, parent, info.Labels); err != nil {
			return "", err
		}
		err = s.mountAndCommit(ctx, name, key, parents, info, req)
	}
	var below *brokenError // containerd could not unpack this one either
	if errors.Is(err, ErrUnavailable) && !errors.As(err, &below) && ctx.Err() == nil {
		return reason(err), nil
	}
	return "", err
}

// mountError is why a layer of an image was not mounted.
type mountError struct {
	ref string
	err error
}

func (e *mountError) Error() string { return fmt.Sprintf("%v: image %s", e.err, e.ref) }
func (e *mountError) Unwrap() error { return e.err }

// reason returns why a layer is not served, without its image, which is named beside it.
func reason(err error) string {
	if m := (*mountError)(nil); errors.As(err, &m) {
		err = m.err
	}
	return err.Error()
}

// refuse returns why a layer is not to be served on these parents, or "".
func (s *Snapshotter) refuse(req request, parents chain) string {
	if len(parents) > 0 && parents.target() == "" {
		return fmt.Sprintf("the chain ID of its parent %s is not known", parents[0].name)
	}
	if req.layer.DiffID != "" {
		if err := checkChain(req.target, req.layer.DiffID, parents.target()); err != nil {
			return err.Error()
		}
	}
	if s.fallbacks.above(s.now(), parents.target()) {
		return "containerd unpacks a layer under it, and fetches all those above"
	}
	return ""
}

// mountAndCommit mounts the layer, or is promised it, and commits the snapshot that refers to it. A
// layer that no snapshot refers to in the end is given up again.
func (s *Snapshotter) mountAndCommit(
	ctx context.Context, name, key string, parents chain, info snapshots.Info, req request,
) error {
	layer := req.layer.Digest
	if err := s.uses.acquire(ctx, layer); err != nil {
		return err
	}
	mounted, promised, err := s.promiseOrMount(ctx, req.layer, parents)
	if err != nil {
		// What Layers has fetched so far helps the next attempt, and goes with the next Cleanup if
		// there is none.
		s.uses.release(layer)
		return &mountError{req.layer.Ref, err}
	}
	err = s.commitServed(ctx, name, key, parents, info, req, mounted, promised)
	s.uses.release(layer)
	if err != nil {
		// The caller may have gone away, which must not stop this.
		return errors.Join(err, s.collectLayers(context.WithoutCancel(ctx), []digest.Digest{layer}))
	}
	if promised {
		s.mountInBackground(name)
	}
	return existsError(req.target)
}

// mountLayer asks Layers for a layer that the caller holds and has marked.
func (s *Snapshotter) mountLayer(ctx context.Context, l Layer, below chain) (Mounted, error) {
	mounted, err := s.layers.Mount(ctx, l, below.below())
	if err != nil {
		return Mounted{}, err
	}
	return mounted, checkDir(mounted.Dir)
}

// commitServed commits the snapshot in one transaction: it appears whole or not at all. The error
// is ErrAlreadyExists when another call has committed it meanwhile.
func (s *Snapshotter) commitServed(
	ctx context.Context, name, key string, parents chain, info snapshots.Info, req request,
	mounted Mounted, promised bool,
) error {
	if mounted.DiffID != "" {
		if err := checkChain(req.target, mounted.DiffID, parents.target()); err != nil {
			return fmt.Errorf("layer %s of %s: %w", req.layer.Digest, req.layer.Ref,
				errors.Join(ErrUnavailable, err))
		}
		req.layer.DiffID = mounted.DiffID
	}
	r := record{Ref: req.layer.Ref, Manifest: req.layer.Manifest, Layer: req.layer.Digest,
		DiffID: req.layer.DiffID, Dir: mounted.Dir}
	value, err := r.encode()
	if err != nil {
		return err
	}
	labels := maps.Clone(info.Labels)
	labels[recordLabel] = value
	parent := ""
	if len(parents) > 0 {
		parent = parents[0].name
	}
	var id string
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent); err != nil {
			return err
		}
		usage := snapshots.Usage{Size: mounted.Size, Inodes: mounted.Inodes}
		id, err = storage.CommitActive(ctx, key, name, usage, snapshots.WithLabels(labels))
		if err != nil {
			return err
		}
		// before anybody sees the snapshot and mounts the layer once more
		s.restored.made(id, promised)
		return nil
	})
	if err != nil {
		if id != "" {
			s.restored.forget(id)
		}
		return fmt.Errorf("commit snapshot %s: %w", name, err)
	}
	s.fallbacks.clear(req)
	s.counters.served.Add(1)
	if !promised {
		s.log.InfoContext(ctx, "layer mounted", "ref", r.Ref, "layer", r.Layer, "dir", r.Dir)
	}
	return nil
}

// servedPrefix starts the names of served snapshots. It sorts before all names that containerd
// makes, which start with a namespace: containerd takes the first snapshot that has the chain ID
// and the parent, which else might be one that another namespace has unpacked.
const servedPrefix = "+mica/"

// servedName is the name of the committed snapshot. In two namespaces the same chain ID can have
// different parents, as one of them may have unpacked these; so the parent is a part of the name.
func servedName(target digest.Digest, parents chain) string {
	if len(parents) == 0 {
		return servedPrefix + target.String()
	}
	return servedPrefix + parents[0].id + "/" + target.String()
}

// exists reports whether there is a committed snapshot of this name.
func (s *Snapshotter) exists(ctx context.Context, name string) (bool, error) {
	var info snapshots.Info
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		_, info, _, err = storage.GetInfo(ctx, name)
		return err
	})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return info.Kind == snapshots.KindCommitted, err
}

// existsError tells containerd that the snapshot that it wants is there.
func existsError(target digest.Digest) error {
	return fmt.Errorf("target snapshot %s: %w", target, errdefs.ErrAlreadyExists)
}

func (s *Snapshotter) servedDir() string { return filepath.Join(s.root, "served") }

// markServed notes that Layers knows the layer, before it does. The caller holds the layer. A mark
// that a power cut takes away is no loss: see Layers.Remove.
func (s *Snapshotter) markServed(d digest.Digest) error {
	f, err := os.OpenFile(filepath.Join(s.servedDir(), d.String()),
		os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("note layer %s: %w", d, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("note layer %s: %w", d, err)
	}
	return nil
}

// markedLayers returns the layers that Layers may know.
func (s *Snapshotter) markedLayers() ([]digest.Digest, error) {
	entries, err := os.ReadDir(s.servedDir())
	if err != nil {
		return nil, err
	}
	var digests []digest.Digest
	for _, e := range entries {
		if d, err := digest.Parse(e.Name()); err == nil {
			digests = append(digests, d)
		}
	}
	return digests, nil
}
