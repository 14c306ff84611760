package fs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/copies"
	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/store"
)

// Open opens the store below o.Root and makes an empty table. Layers that the store has
// are mounted when Mount asks for them. ctx is used for its values alone. Pair it with Close.
func Open(ctx context.Context, o Options) (*Table, error) {
	o.Log = cmp.Or(o.Log, slog.Default())
	o.Fetch.Log = cmp.Or(o.Fetch.Log, o.Log)
	o.PullDeadline = cmp.Or(o.PullDeadline, time.Minute)
	o.RecordTime = cmp.Or(o.RecordTime, time.Minute)
	o.Downloads = cmp.Or(o.Downloads, 4)
	if o.probe == nil {
		o.probe = erofs.Probe
	}
	for _, name := range []string{mountsName, devicesName} {
		// Root's alone: whoever knows a digest could read that image's files here. Overlayfs has
		// its lower directories looked up when root mounts it, for containers in user namespaces
		// too.
		dir := filepath.Join(o.Root, name)
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return nil, fmt.Errorf("open layers: %w", err)
		}
	}
	n, err := openNames(o.Root)
	if err != nil {
		return nil, err
	}
	s, err := openStore(ctx, o.Root)
	if err != nil {
		return nil, err
	}
	budget := cmp.Or(o.Fetch.Budget, line.New(0, 0))
	o.Fetch.Budget = budget
	t := &Table{
		o: o, log: o.Log, store: s, names: n,
		budget:  budget,
		copies:  copies.New(budget, o.Log),
		memory:  fuse.NewMemory(0),
		entries: map[digest.Digest]*tableEntry{},
		demand: demand{wanted: map[digest.Digest]bool{},
			removing: map[digest.Digest]chan struct{}{}},
		recordings: profile.NewRecordings(o.Profiles, o.RecordTime, o.Log),
		held:       map[digest.Digest][]*heldMount{},
	}
	t.ctx, t.stop = context.WithCancel(context.WithoutCancel(ctx))
	if t.cache, err = cache.New(t.ctx, cacheHost{t}, s, o.Root, o.Cache, o.Log); err != nil {
		t.stop()
		return nil, errors.Join(err, s.Close())
	}
	o.Fetch.Hold = t.cache.Pause
	t.fetch = fetch.New(o.Fetch)
	t.pulls = t.newPulls()
	support := supported(t.ctx, o.Root, o.probe)
	t.kernel = func() (kernel, error) {
		s, err := support()
		if err != nil {
			return kernel{}, err
		}
		return choose(s, o.Mode, o.DirectIO)
	}
	t.running.Go(func() { t.fetch.Run(t.ctx) })
	t.adoptAll(t.ctx, o.Held) // before all else: readers wait
	began := time.Now()
	t.goes(func(ctx context.Context) { t.cleanUp(ctx, began) })
	t.running.Go(func() { t.cache.Run(t.ctx) })
	t.running.Go(func() { // so that the first Mount need not wait for it
		if k, err := t.kernel(); err == nil && k.lazy == EROFS {
			t.mounter.Warm()
		}
	})
	t.running.Go(func() {
		if err := s.Run(t.ctx); err != nil && t.ctx.Err() == nil {
			t.log.Error("store stopped writing its presence maps: layers will be fetched again "+
				"after a restart", "err", err)
		}
	})
	return t, nil
}

// storePatience is how long Open waits for the store: a process that was killed lets go of it when
// the kernel has done away with it.
const storePatience = 2 * time.Second

func openStore(ctx context.Context, root string) (*store.Store, error) {
	for end := time.Now().Add(storePatience); ; time.Sleep(10 * time.Millisecond) {
		s, err := store.Open(root)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) || ctx.Err() != nil {
			return s, err
		}
	}
}

// Close ends pulls and closes the store. Mounts of lazy layers that a keeper has are left to the
// next process: who reads them waits for it. Without a keeper they end, and their readers get
// errors. Mounts of complete layers stay: they need no daemon.
func (t *Table) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.mu.Unlock()
	t.stop()
	all := t.opened(true)
	var errs []error
	if t.keeps() {
		// What takes long is done while reads are still answered.
		t.running.Wait()
		errs = append(errs, t.store.Flush())
		for _, l := range all {
			errs = append(errs, l.leave())
		}
	}
	for _, l := range all {
		errs = append(errs, l.close())
	}
	t.running.Wait()
	t.mounter.Close()
	errs = append(errs, t.giveUpHeld(context.WithoutCancel(t.ctx), true))
	return errors.Join(append(errs, t.store.Close())...)
}
