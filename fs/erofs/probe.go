package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// Mode is a way to serve a layer.
type Mode string

// The modes.
const (
	ModeLocal Mode = "local" // EROFS over the store's file: the layer is complete
	ModeErofs Mode = "erofs" // EROFS over a FUSE mount's file
	ModeFuse  Mode = "fuse"  // a FUSE mount of the whole tree
)

// Check is what came of trying one way to serve a layer.
type Check struct {
	Mode    Mode
	Backing Backing // of modes local and erofs
	Err     error   // nil: it works, with an overlay on top
}

func (c Check) String() string {
	name := string(c.Mode)
	if c.Backing != Auto {
		name += " (" + string(c.Backing) + ")"
	}
	if c.Err != nil {
		return name + ": " + c.Err.Error()
	}
	return name + ": ok"
}

// Support is what this kernel can do on one file system.
type Support struct {
	Checks []Check // best first within a mode
	// Resend says that FUSE mounts outlive their process (Linux 6.9): see fuse.Mount.Saved.
	Resend bool
}

// Backing returns how a mode works here; if it does not, the error says why. For
// mode fuse it is Auto.
func (s Support) Backing(m Mode) (Backing, error) {
	var errs []error
	for _, c := range s.Checks {
		switch {
		case c.Mode != m:
		case c.Err == nil:
			return c.Backing, nil
		default:
			errs = append(errs, c.Err)
		}
	}
	if len(errs) == 0 {
		return Auto, fmt.Errorf("mode %q: %w", m, errors.ErrUnsupported)
	}
	return Auto, fmt.Errorf("mode %s does not work here: %w", m, errors.Join(errs...))
}

// checkTime bounds each mount of a check by the child, and the read through it: a kernel that hangs
// is one that does not work.
const checkTime = 20 * time.Second

// Probe finds out which modes work with a store in dir, by serving a tiny layer
// from there in every way: mounted, an overlay on top, read through it by a child
// process. Nothing is left behind. The error is about the attempt itself; what
// does not work stands in Support.
//
// The child is this program again: main must call RunChild.
func Probe(ctx context.Context, dir string) (Support, error) {
	var s Support
	tmp, err := os.MkdirTemp(dir, probePrefix)
	if err != nil {
		return s, fmt.Errorf("probe %s: %w", dir, err)
	}
	p := probe{dir: tmp, content: bytes.Repeat([]byte("mica "), 2000)}
	p.mounter.Limit = checkTime
	defer p.mounter.Close()
	if err := errors.Join(p.makeDirs(), p.writeLayer()); err != nil {
		return s, errors.Join(fmt.Errorf("probe %s: %w", dir, err), os.RemoveAll(tmp))
	}
	for _, c := range []Check{
		{Mode: ModeLocal, Backing: File}, {Mode: ModeLocal, Backing: Loop},
		{Mode: ModeErofs, Backing: File}, {Mode: ModeErofs, Backing: Loop},
		{Mode: ModeFuse},
	} {
		if c.Err = ctx.Err(); c.Err == nil {
			c.Err = p.check(ctx, c)
		}
		s.Checks = append(s.Checks, c)
	}
	s.Resend = p.resend
	// Whatever a check could not unmount keeps its directory.
	if err := errors.Join(p.full, os.RemoveAll(tmp)); err != nil {
		return s, fmt.Errorf("probe %s: %w", dir, err)
	}
	return s, nil
}

// By is what is left of s where EROFS has only that backing.
func (s Support) By(b Backing) Support {
	s.Checks = slices.DeleteFunc(slices.Clone(s.Checks), func(c Check) bool {
		return c.Mode != ModeFuse && c.Backing != b
	})
	return s
}

// probePrefix begins the names of the directories in which is probed.
const probePrefix = ".probe-"

// ClearProbes takes away what probes in dir have left that were killed. None may be under way.
func ClearProbes(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, probePrefix+"*"))
	if err != nil {
		return fmt.Errorf("clear probes: %w", err)
	}
	var errs []error
	for _, tmp := range left {
		p := probe{dir: tmp}
		for _, name := range []string{"merged", "lower", "fuse"} {
			// Whatever lies there, of a dead process.
			for unix.Unmount(p.path(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
			}
		}
		errs = append(errs, os.RemoveAll(tmp))
	}
	return errors.Join(errs...)
}

// probe is a tiny layer and the directory for it and its mounts.
type probe struct {
	dir     string
	content []byte // of the layer's one file
	mounter Mounter
	resend  bool  // see Support
	full    error // that an overlay found no space, which says nothing of the kernel
}

// probeFile is its name.
const probeFile = "probe"

func (p *probe) path(name string) string { return filepath.Join(p.dir, name) }

// makeDirs makes all that is mounted at, so that no check fails for want of space.
func (p *probe) makeDirs() error {
	for _, name := range []string{"fuse", "lower", "upper", "work", "merged"} {
		if err := os.Mkdir(p.path(name), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// writeLayer writes the files "index" and "device": in the latter, the file
// begins at the second block.
func (p *probe) writeLayer() (err error) {
	blocks := 1 + (len(p.content)+erofs.BlockSize-1)/erofs.BlockSize
	device := make([]byte, blocks*erofs.BlockSize)
	copy(device[erofs.BlockSize:], p.content)
	if err := os.WriteFile(p.path("device"), device, 0o600); err != nil {
		return err
	}
	f, err := os.Create(p.path("index"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = index.Write(f, tinyDraft(device, int64(len(p.content))))
	return err
}

// check tries one way.
func (p *probe) check(ctx context.Context, c Check) (err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	device, lower := p.path("device"), p.path("lower")
	if c.Mode != ModeLocal {
		m, closeAll, err := p.serve(ctx, c.Mode)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closeAll()) }()
		_, p.resend = m.Saved()
		device = m.DevicePath()
	}
	if c.Mode == ModeFuse {
		lower = p.path("fuse")
	} else {
		if _, err := p.mounter.Mount(p.path("index"), device, lower, Options{Backing: c.Backing}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, Unmount(lower)) }()
	}
	merged := p.path("merged")
	err = p.mounter.overlay(lower, p.path("upper"), p.path("work"), merged)
	if err != nil {
		err = fmt.Errorf("overlay on top: %w", err)
		if atomicfile.NoRoom(err) {
			p.full = err
		}
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(merged, unix.MNT_DETACH)) }()
	got, err := readInChild(ctx, filepath.Join(merged, probeFile))
	if err != nil {
		return fmt.Errorf("read through the overlay: %w", err)
	}
	if !bytes.Equal(got, p.content) {
		return fmt.Errorf("read through the overlay: %d bytes that are not the file's", len(got))
	}
	return nil
}

// serve mounts the layer's FUSE part for a mode.
func (p *probe) serve(ctx context.Context, m Mode) (mnt *fuse.Mount, closeAll func() error, err error) {
	device, err := os.Open(p.path("device"))
	if err != nil {
		return nil, nil, err
	}
	image, err := os.Open(p.path("index"))
	if err != nil {
		return nil, nil, errors.Join(err, device.Close())
	}
	closeFiles := func() error { return errors.Join(device.Close(), image.Close()) }
	mnt, err = p.mountFuse(ctx, m, device, image)
	if err != nil {
		return nil, nil, errors.Join(err, closeFiles())
	}
	return mnt, func() error {
		err := mnt.Unmount()
		if err != nil {
			err = errors.Join(err, mnt.Close())
		}
		mnt.Wait()
		return errors.Join(err, closeFiles())
	}, nil
}

func (p *probe) mountFuse(ctx context.Context, m Mode, device, image *os.File) (*fuse.Mount, error) {
	fi, err := device.Stat()
	if err != nil {
		return nil, err
	}
	dev := probeDevice{device, fi.Size()}
	if m == ModeErofs {
		return fuse.MountDevice(ctx, p.path("fuse"), dev, fuse.Options{})
	}
	if fi, err = image.Stat(); err != nil {
		return nil, err
	}
	layer, err := index.Open(image, fi.Size())
	if err != nil {
		return nil, err
	}
	return fuse.MountTree(ctx, p.path("fuse"), layer, dev, fuse.Options{})
}

// probeDevice is a file as a fuse.Device.
type probeDevice struct {
	file *os.File
	size int64
}

func (d probeDevice) Size() int64 { return d.size }

func (d probeDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := d.file.ReadAt(p, off)
	return err
}

// escapeOverlay protects what overlayfs takes for a separator in its options.
func escapeOverlay(path string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(path)
}
