package rootfs

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs"
)

// Overlay is layers shown as one.
type Overlay struct {
	Lower []fs.Below // topmost first
	Empty string     // a folder without files, since overlayfs wants two layers at the least
	// Upper and Work are where changes go, on one file system; both "": none can be made.
	Upper, Work string
}

// Mount shows the overlay at dir.
func (o Overlay) Mount(dir string) error {
	if err := o.mountAt(dir); err != nil {
		return fmt.Errorf("overlay of %d layers at %s: %w", len(o.Lower), dir, err)
	}
	return nil
}

func (o Overlay) mountAt(dir string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// One device and different inode numbers for all layers.
	set := [][2]string{{"source", "mica"}, {"xino", "on"}}
	// One by one (Linux 6.8): a string of all of them is limited to 255 bytes here.
	for _, b := range o.Lower {
		set = append(set, [2]string{"lowerdir+", b.Dir})
	}
	set = append(set, [2]string{"lowerdir+", o.Empty})
	attr := unix.MOUNT_ATTR_RDONLY
	if o.Upper != "" {
		set = append(set, [2]string{"upperdir", o.Upper}, [2]string{"workdir", o.Work})
		attr = 0
	}
	for _, s := range set {
		if err := unix.FsconfigSetString(fd, s[0], s[1]); err != nil {
			return fmt.Errorf("%s=%s: %w", s[0], s[1], err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return err
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	return unix.MoveMount(mnt, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
