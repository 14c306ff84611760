package fs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/keeper"
)

// Keeper keeps descriptors for the process that comes after this one. Calls are made in parallel.
// *keeper.Keeper is one.
type Keeper interface {
	// Keeps says whether it keeps anything at all.
	Keeps() bool
	// Store returns when the files are kept, whatever becomes of this process.
	Store(ctx context.Context, name string, files ...*os.File) error
	// Drop gives up what was stored under name; no error if there is nothing.
	Drop(ctx context.Context, name string) error
}

// keeperTime bounds a word with the keeper.
const keeperTime = 10 * time.Second

// served is a FUSE mount of a layer.
type served struct {
	*fuse.Mount
	name   string // under which the keeper has its descriptor; "": it has not
	device string // "major:minor", as the mount table shows it
}

// alive says whether the kernel still knows the mount.
func (s *served) alive() bool {
	select {
	case <-s.Done():
		return false
	default:
		return true
	}
}

// heldState describes a mount whose descriptor the keeper has, in a file beside it. JSON.
type heldState struct {
	Version int           `json:"version"`
	Layer   digest.Digest `json:"layer"`
	DiffID  digest.Digest `json:"diffID"`
	Variant string        `json:"variant"` // of a tree, see variant
	// hexadecimal sha256 of the head of the index that a tree shows
	Index string     `json:"index"`
	Mount fuse.Saved `json:"mount"`
}

const (
	heldVersion  = 1
	maxHeldState = 64 << 10
	// indexHead is the part of an index file that pins all the rest of it by digests: its header.
	indexHead = 1024
)

// headSum returns heldState.Index of an index file.
func headSum(r io.ReaderAt) (string, error) {
	b := make([]byte, indexHead)
	if _, err := r.ReadAt(b, 0); err != nil {
		return "", fmt.Errorf("read index: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// keep stores a new mount with the keeper, before anybody uses it. What cannot be kept is served
// all the same, and ends with this process.
func (t *Table) keep(ctx context.Context, m *fuse.Mount, st heldState) *served {
	saved, ok := m.Saved()
	s := &served{Mount: m, device: saved.Device}
	if t.keeps() {
		st.Version, st.Mount = heldVersion, saved
		name := string(saved.Kind) + "-" + mountKey(st.Layer) + "-" +
			strings.ToLower(rand.Text()[:10])
		err := error(nil)
		if !ok {
			err = errors.New("it takes Linux 6.9")
		} else {
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

// file returns the state in a file of memory, which nobody can change.
func (st *heldState) file() (*os.File, error) {
	b, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("mica-mount", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "mica-mount")
	_, err = f.Write(b)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write down a mount: %w", err), f.Close())
	}
	return f, nil
}

// heldMount is a connection that a former process has left with the keeper.
type heldMount struct {
	held  keeper.Held
	state heldState

	mu    sync.Mutex
	taken bool        // it is served, or about to be
	lost  *fuse.Mount // answers that the layer is lost; nil: nobody answers, callers wait
}

// readHeld makes sense of what the keeper has handed out.
func readHeld(h keeper.Held) (*heldMount, error) {
	if len(h.Files) != 2 {
		return nil, fmt.Errorf("%d files", len(h.Files))
	}
	b, err := io.ReadAll(io.NewSectionReader(h.Files[1], 0, maxHeldState))
	if err != nil {
		return nil, err
	}
	m := &heldMount{held: h}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&m.state); err != nil {
		return nil, err
	}
	if v := m.state.Version; v != heldVersion {
		return nil, fmt.Errorf("version %d of its description, known is %d", v, heldVersion)
	}
	if err := m.state.Layer.Validate(); err != nil {
		return nil, fmt.Errorf("layer %q: %w", m.state.Layer, err)
	}
	if !fuse.Alive(h.Files[0]) {
		return nil, errUnused
	}
	return m, nil
}

var errUnused = errors.New("its mount is gone")

// close closes our part of what the keeper has handed out.
func (m *heldMount) close() error { return closeHeld(m.held) }

func closeHeld(h keeper.Held) error {
	var errs []error
	for _, f := range h.Files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
