package snapshotter

import (
	"context"
	"runtime/debug"
)

// promiseOrMount asks Layers for a layer that the caller holds: to promise it, or else to mount it,
// for which the layers below it have to be mounted.
func (s *Snapshotter) promiseOrMount(
	ctx context.Context, l Layer, parents chain,
) (m Mounted, promised bool, err error) {
	if err := s.markServed(l.Digest); err != nil {
		return Mounted{}, false, err
	}
	if m, ok := s.layers.Promise(ctx, l, parents.below()); ok {
		return m, true, checkDir(m.Dir)
	}
	if _, err := s.await(ctx, parents); err != nil {
		return Mounted{}, false, err
	}
	m, err = s.mountLayer(ctx, l, parents)
	return m, false, err
}

// mountInBackground mounts, in the background, the layer of a snapshot that was committed on a promise. Until
// then whoever needs the snapshot mounts it, or waits for that, as after a restart.
func (s *Snapshotter) mountInBackground(name string) {
	s.background.Go(func() {
		defer func() {
			if v := recover(); v != nil { // it fails this attempt, and nothing else
				s.log.Error("panic", "panic", v, "stack", string(debug.Stack()))
			}
		}()
		if err := s.mountPromised(s.life, name); err != nil && s.life.Err() == nil {
			s.log.Error("layer of an image that was just pulled cannot be mounted; the next "+
				"container that needs it tries again", "snapshot", name, "err", err)
		}
	})
}

func (s *Snapshotter) mountPromised(ctx context.Context, name string) error {
	c, err := s.viewChain(ctx, name)
	if err != nil {
		return err
	}
	if _, err := s.await(ctx, c); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "layer mounted", "ref", c[0].served.Ref, "layer", c[0].served.Layer,
		"dir", c[0].dir)
	return nil
}
