package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

func TestErrno(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want gofuse.Status
	}{
		{nil, gofuse.OK},
		{errors.New("registry says 503"), gofuse.EIO},
		{context.DeadlineExceeded, gofuse.EIO},
		{context.Canceled, gofuse.EIO}, // somebody else's: see interrupted
		{unix.ENOSPC, gofuse.EIO},
		{unix.EINTR, gofuse.EIO},
		{index.ErrCorrupt, gofuse.EIO},
		{errInterrupted, gofuse.EINTR},
		{fs.ErrNotExist, gofuse.ENOENT},
		{erofs.ErrNoXattr, gofuse.ENODATA},
		{unix.ESTALE, gofuse.Status(unix.ESTALE)},
		{unix.EISDIR, gofuse.EISDIR},
	} {
		if got := errno(tt.err); got != tt.want {
			t.Errorf("%v: got %v, want %v", tt.err, got, tt.want)
		}
		if tt.err == nil {
			continue
		}
		if got := errno(fmt.Errorf("read: %w", tt.err)); got != tt.want {
			t.Errorf("wrapped %v: got %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestInterrupted(t *testing.T) {
	live := t.Context()
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	other := context.Canceled
	if got := errno(interrupted(live, other)); got != gofuse.EIO {
		t.Errorf("cancelled elsewhere: %v, want EIO", got)
	}
	if got := errno(interrupted(dead, other)); got != gofuse.EINTR {
		t.Errorf("cancelled by the caller: %v, want EINTR", got)
	}
	if err := interrupted(dead, nil); err != nil {
		t.Errorf("a read that made it is one: %v", err)
	}
}

// Nodes that no index ever had: the kernel asks for them if it took over a
// connection whose index was another.
func TestUnknownNodes(t *testing.T) {
	d := &deviceFS{dev: &sectors{}}
	if _, err := d.file(99); errno(err) != gofuse.Status(unix.ESTALE) {
		t.Errorf("content: %v, want ESTALE", err)
	}
	if _, err := d.file(rootNode); errno(err) != gofuse.EISDIR {
		t.Errorf("content of the root: %v, want EISDIR", err)
	}
	var out gofuse.AttrOut
	if s := d.GetAttr(nil, &gofuse.GetAttrIn{InHeader: gofuse.InHeader{NodeId: 99}},
		&out); s != gofuse.Status(unix.ESTALE) {
		t.Errorf("attributes: %v, want ESTALE", s)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(make([]byte, inHeaderSize))
	f.Add(asBytes(&gofuse.ReadIn{InHeader: gofuse.InHeader{Opcode: opRead}, Size: 4096}))
	f.Add(asBytes(&gofuse.GetXAttrIn{InHeader: gofuse.InHeader{Opcode: opGetXattr}, Size: 1 << 31}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := header(b)
		if err != nil {
			return
		}
		if n := payload(b, h.Opcode); n < 0 {
			t.Errorf("payload of %d bytes", n)
		}
		if len(b) < inHeaderSize {
			t.Errorf("a header of %d bytes", len(b))
		}
	})
}
