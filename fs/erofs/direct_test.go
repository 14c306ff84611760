package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
)

// childDirect: DIR SIZE reads all files with O_DIRECT, so many bytes at a time, compares them with
// what is read without, and prints how many there are.
func childDirect(args []string) error {
	var size, files int
	if _, err := fmt.Sscan(args[1], &size); err != nil {
		return err
	}
	b := make([]byte, size+4096)
	b = b[4096-int(uintptr(unsafe.Pointer(&b[0]))%4096):][:size]
	err := filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		defer unix.Close(fd)
		var got []byte
		for {
			n, err := unix.Pread(fd, b, int64(len(got)))
			if err != nil {
				return fmt.Errorf("read %s at %d: %w", path, len(got), err)
			}
			if got = append(got, b[:n]...); n < size {
				break
			}
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: %d bytes that are not its %d", path, len(got), len(want))
		}
		return nil
	})
	fmt.Println(files)
	return err
}

// TestDirect: O_DIRECT takes loop devices, and works with them for every file, to its last byte.
func TestDirect(t *testing.T) {
	b := layertest.NewBuilder()
	sizes := []int{0, 1, 511, 512, 513, 4096, 70_001, 1 << 20}
	for _, n := range sizes {
		b.File(fmt.Sprint(n), 0o644, layertest.Random(n, 1))
	}
	sparse := b.File("sparse", 0o644, layertest.Random(4096, 4))
	sparse.Size, sparse.Extents[0].File = 1<<20+5, 512<<10
	l := b.Make(t)
	dev, err := os.Open(l.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	src := &fileDevice{fd: int(dev.Fd()), size: l.Draft.DeviceSize}
	served, err := fuse.MountDevice(t.Context(), t.TempDir(), src, fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := served.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	for name, device := range map[string]string{"local": l.Device, "lazy": served.DevicePath()} {
		for _, backing := range []erofs.Backing{erofs.File, erofs.Loop} {
			t.Run(name+" "+string(backing), func(t *testing.T) {
				var m erofs.Mounter
				defer m.Close()
				dir := t.TempDir()
				if _, err := m.Mount(l.Index, device, dir,
					erofs.Options{Backing: backing}); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := erofs.Unmount(dir); err != nil {
						t.Error(err)
					}
				}()
				for _, size := range []string{"512", "4096", "1048576"} {
					out, err := tryChild(t, "direct", dir, size)
					switch {
					case backing == erofs.File && !errors.Is(err, unix.EINVAL):
						t.Errorf("over files: %v; docs/limits.md says EINVAL", err)
					case backing == erofs.Loop &&
						(err != nil || string(out) != fmt.Sprintln(len(sizes)+1)):
						t.Errorf("%s bytes at a time: %v, %q files", size, err, out)
					}
				}
			})
		}
	}
}
