package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// MakeLazy implements cache.Layer: it makes a complete layer lazy again, without content, and
// returns how many bytes of it went. Its mount points show it at any moment. Who uses a mount of
// the complete layer still reads that to the end: their device is kept by the kernel until the last
// of them has gone.
func (v *openLayer) MakeLazy(ctx context.Context) (int64, error) {
	k, err := v.t.kernel()
	if err != nil {
		return 0, err
	}
	v.t.mountsMu.RLock()
	defer v.t.mountsMu.RUnlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stage() == stageClosed {
		return 0, nil
	}
	for _, p := range v.points {
		if p.mode != Local {
			continue
		}
		if k.lazy != EROFS {
			v.t.fixed.Store(true)
			return 0, nil
		}
		if err := v.makeLazyPoint(ctx, p, k); err != nil {
			return 0, fmt.Errorf("make layer %s lazy: %w", v.digest, err)
		}
		if p.mode == Local {
			return 0, nil
		}
	}
	_, bytes := v.store.Count()
	if err := v.data.Empty(); err != nil {
		return 0, err
	}
	v.t.fetch.Add(v.digest, v.data)
	v.t.log.InfoContext(ctx, "layer is lazy again", "layer", v.digest, "bytes", bytes)
	return bytes, nil
}

// makeLazyPoint puts a lazy mount in the place of a complete one, which stays where the kernel
// cannot do that.
func (v *openLayer) makeLazyPoint(ctx context.Context, p *mountPoint, k kernel) error {
	done, err := v.exchange(p, func(q *mountPoint) error { return q.mountLazy(ctx, v, k) })
	if err == nil && !done {
		v.t.log.Warn("the kernel cannot replace a mount by another: complete layers stay whole "+
			"until "+
			"containerd removes them", "layer", v.digest)
	}
	return err
}

// exchange puts what mount makes, at a point that it is given, in the place of the uppermost mount
// of p, which those who use it keep. False: the kernel cannot do that, and all is as it was.
func (v *openLayer) exchange(p *mountPoint, mount func(*mountPoint) error) (done bool, err error) {
	dir := filepath.Join(v.t.o.Root, devicesName, v.key+".new")
	if err := v.t.clean(dir); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, erofs.Unmount(dir), os.Remove(dir)) }()
	q := &mountPoint{dir: dir, index: p.index}
	if err := mount(q); err != nil {
		return false, err
	}
	err = erofs.Replace(dir, p.dir)
	if errors.Is(err, unix.EINVAL) {
		v.t.fixed.Store(true) // Linux 6.5 can
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.mode = q.mode
	p.id, err = mountinfo.ID(p.dir)
	return true, err
}
