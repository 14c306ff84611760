package fs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

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
	// lost answers that the layer is lost; nil: nobody answers, readers wait. Guarded by
	// Table.heldMu.
	lost *fuse.Mount
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

// closeHeld closes our part of what the keeper has handed out.
func closeHeld(h keeper.Held) error {
	var errs []error
	for _, f := range h.Files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
