package fs

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"github.com/mica-snapshotter/mica/fs/fuse"
)

// keeperTime bounds a word with the keeper.
const keeperTime = 10 * time.Second

// keep stores a new mount with the keeper, before anybody uses it. What cannot be kept is served
// all the same, and ends with this process.
func (t *Table) keep(ctx context.Context, m *fuse.Mount, st heldState) *served {
	saved, ok := m.Saved()
	s := &served{Mount: m, device: saved.Device}
	if t.keeps() {
		st.Version, st.Mount = heldVersion, saved
		name := string(saved.Kind) + "-" + mountKey(st.Layer) + "-" +
			strings.ToLower(rand.Text()[:10])
		err := errors.New("it takes Linux 6.9")
		if ok {
			err = t.store1(ctx, name, m, &st)
		}
		if err != nil {
			t.log.WarnContext(ctx, "containers of this layer will not survive the end of micad",
				"layer", st.Layer, "dir", m.Dir(), "err", err)
		} else {
			s.name = name
		}
	}
	t.watch(s)
	return s
}

func (t *Table) keeps() bool { return t.o.Keeper != nil && t.o.Keeper.Keeps() }

// store1 stores one mount.
func (t *Table) store1(ctx context.Context, name string, m *fuse.Mount, st *heldState) (err error) {
	file, err := st.file()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	fd, err := m.Descriptor()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fd.Close()) }()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keeperTime)
	defer cancel()
	return t.o.Keeper.Store(ctx, name, fd, file)
}

// watch has the keeper drop a mount that ends by itself: when its last user is gone.
func (t *Table) watch(s *served) {
	if s.name == "" {
		return
	}
	t.goes(func(ctx context.Context) {
		select {
		case <-ctx.Done():
			return
		case <-s.Done():
		}
		if ctx.Err() == nil {
			t.forgetKept(ctx, s.name)
		}
	})
}

// forgetKept gives up what the keeper has under name.
func (t *Table) forgetKept(ctx context.Context, name string) {
	if name == "" || !t.keeps() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keeperTime)
	defer cancel()
	if err := t.o.Keeper.Drop(ctx, name); err != nil {
		t.log.WarnContext(ctx, "the keeper still holds what nobody needs", "name", name, "err", err)
	}
}

// end takes a mount away for good: those who use it get errors.
func (t *Table) end(ctx context.Context, s *served) error {
	err := s.Unmount()
	if errors.Is(err, fuse.ErrCovered) {
		err = nil // it goes with the directory, see clearMounts, or stays there dead
	}
	err = errors.Join(err, s.Close())
	t.forgetKept(ctx, s.name)
	return err
}
