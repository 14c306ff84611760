package erofs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// moveMountBeneath is MOVE_MOUNT_BENEATH of <linux/mount.h>, Linux 6.5.
const moveMountBeneath = 0x200

// Replace puts the mount at from in the place of the uppermost one at to, which is taken out of the
// file tree; who uses that keeps it until it ends. At no moment is there nothing at to. The error
// wraps EINVAL where the kernel cannot do that (before Linux 6.5); then all is as it was.
func Replace(from, to string) error {
	if err := replace(from, to); err != nil {
		return fmt.Errorf("replace mount %s: %w", to, err)
	}
	return nil
}

func replace(from, to string) (err error) {
	// A copy, because a mount below a shared one cannot be moved.
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", from, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH|moveMountBeneath); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	if err := unix.Unmount(to, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	if err := unix.Unmount(from, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", from, err)
	}
	return nil
}
