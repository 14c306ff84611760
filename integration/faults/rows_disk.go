package faults

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/integration/node"
)

// diskSize is the size of the disks that rows have of their own.
const diskSize = 192 << 20

// diskCalm is for how long micad leaves a disk alone that has failed (docs/config.md).
const diskCalm = 30 * time.Second

func ownDisk(o *node.Options) { o.Disk = diskSize }

// diskFaults are the rows of disks and files that fail.
func diskFaults() []Fault {
	return []Fault{
		{
			Name: "disk full", Hold: outage, Calm: diskCalm, Options: ownDisk,
			Strike: func(_ context.Context, s *Stage) (err error) {
				s.lift, err = s.Node.Disk().Fill()
				return err
			},
			Lift: func(_ context.Context, s *Stage) error { return s.lift() },
		},
		{
			Name: "disk read errors", Hold: outage, Calm: diskCalm, Options: ownDisk,
			Strike: unreadable,
			Lift:   func(_ context.Context, s *Stage) error { return s.Node.Disk().Limit(0) },
		},
		damaged("store file truncated",
			func(path string, size int64) error { return os.Truncate(path, size/2) }),
		damaged("store file deleted",
			func(path string, _ int64) error { return os.RemoveAll(filepath.Dir(path)) }),
		damaged("store file bit flipped", flipped),
		{
			Name: "metadata database damaged",
			Strike: func(ctx context.Context, s *Stage) error {
				return s.Node.WithoutMicad(ctx, func() error {
					return os.WriteFile(filepath.Join(s.Node.MicadRoot(), "metadata.db"),
						make([]byte, 64<<10), 0o600)
				})
			},
			Restore: func(ctx context.Context, s *Stage) error { return s.fault.Strike(ctx, s) },
		},
	}
}

// devices calls fn for the file of every layer's uncompressed bytes in the store.
func (s *Stage) devices(fn func(path string, size int64) error) error {
	found := 0
	err := filepath.WalkDir(filepath.Join(s.Node.MicadRoot(), "layers"),
		func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "device" || !d.Type().IsRegular() {
				return ignoreMissing(err)
			}
			info, err := d.Info()
			if err != nil {
				return ignoreMissing(err)
			}
			found++
			return fn(path, info.Size())
		})
	if err == nil && found == 0 {
		err = errors.New("the store holds no layers")
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// unreadable makes the disk end where the bytes of half of the layers begin,
// and has the kernel forget what it has of them.
func unreadable(ctx context.Context, s *Stage) error {
	_ = s.Node.Disk().Sync() // tells of what failed before, too
	var places []int64
	var open []*os.File // before the disk ends: their folder may lie behind that
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	err := s.devices(func(path string, _ int64) error {
		low, high, err := s.Node.Disk().Where(ctx, path)
		if err != nil || high == 0 {
			return err
		}
		places = append(places, (low+high)/2)
		f, err := os.Open(path)
		if err == nil {
			open = append(open, f)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(places) == 0 {
		return errors.New("no layer has reached the disk")
	}
	slices.Sort(places)
	if err := s.Node.Disk().Limit(places[len(places)/2]); err != nil {
		return err
	}
	for _, f := range open {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
	}
	return nil
}

// damaged does something to the files of all layers, while micad and readers use
// them and, in column Restore, between the end of a micad and the start of the next.
func damaged(name string, damage func(path string, size int64) error) Fault {
	return Fault{
		Name:   name,
		Strike: func(_ context.Context, s *Stage) error { return s.devices(damage) },
		Restore: func(ctx context.Context, s *Stage) error {
			return s.Node.WithoutMicad(ctx, func() error { return s.devices(damage) })
		},
	}
}

// flipped changes one bit in every 64 KiB of what a file holds.
func flipped(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		if err != nil {
			return err
		}
		b := make([]byte, 1)
		at := min(data+rand.Int64N(4096), size-1)
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		b[0] ^= 1 << rand.IntN(8)
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
		off = data + 64<<10
	}
	return nil
}
