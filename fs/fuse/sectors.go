package fuse

import "context"

// sector is the unit in which EROFS counts a device, and st_blocks a file.
const sector = 512

// sectors is a Device in whole sectors: zeros follow it to the next multiple of
// 512 bytes.
type sectors struct {
	dev    Device
	filler Filler // dev, if it is one
	length int64
}

var _ file = (*sectors)(nil)

func newSectors(dev Device) *sectors {
	filler, _ := dev.(Filler)
	return &sectors{dev: dev, filler: filler, length: (dev.Size() + sector - 1) / sector * sector}
}

func (s *sectors) size() int64 { return s.length }

func (s *sectors) fill(ctx context.Context, off, n int64) error {
	n = min(n, s.dev.Size()-off)
	if s.filler == nil || n <= 0 {
		return nil
	}
	return s.filler.Fill(ctx, off, n)
}

func (s *sectors) readAt(ctx context.Context, p []byte, off int64) error {
	n := max(min(int64(len(p)), s.dev.Size()-off), 0)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return s.dev.ReadAt(ctx, p[:n], off)
}
