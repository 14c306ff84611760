package fuse

import (
	"context"
	"errors"
	"io/fs"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// errno maps an error of a Device or a tree to what the kernel is told. It is
// the only place that does.
//
// A caller that reads sees EIO for whatever goes wrong behind the device: no
// other number (ENOSPC, ETIMEDOUT, EAGAIN of some inner call) would mean to it
// what it means to us. The Device knows the cause.
func errno(err error) gofuse.Status {
	switch {
	case err == nil:
		return gofuse.OK
	case errors.Is(err, errInterrupted):
		return gofuse.EINTR
	case errors.Is(err, fs.ErrNotExist):
		return gofuse.ENOENT
	case errors.Is(err, erofs.ErrNoXattr):
		return gofuse.ENODATA
	case errors.Is(err, unix.ESTALE):
		return gofuse.Status(unix.ESTALE)
	case errors.Is(err, unix.EISDIR):
		return gofuse.EISDIR
	case errors.Is(err, unix.EINVAL):
		return gofuse.EINVAL
	default:
		return gofuse.EIO
	}
}

// errInterrupted is the error of a read whose context ended before it had its bytes: its caller is
// killed, or the connection ends.
var errInterrupted = errors.New("interrupted by the caller")

// interrupted turns the error of a read that ended because its caller gave up
// into errInterrupted. A context.Canceled from elsewhere (a shared fetch whose
// owner gave up) is not the caller's interrupt: a caller that lives on never sees EINTR.
func interrupted(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	return errInterrupted
}

func errnoError(n int32) error { return unix.Errno(n) }
