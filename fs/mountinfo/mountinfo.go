// Package mountinfo says what is mounted at a directory, without touching the
// mount itself.
//
// It reads /proc/self/mountinfo, or asks the kernel for what it knows by itself: a stat(2) of the
// directory would ask the file system that is mounted there, which for a FUSE mount may be this
// very process and may be dead. All functions may be called in parallel.
package mountinfo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is one mount, as /proc/self/mountinfo shows it (proc_pid_mountinfo(5)).
type Mount struct {
	ID      int    // of the mount; not reused while it exists
	Device  string // "major:minor", st_dev of the files on it
	Root    string // the directory of the file system that is mounted here
	Type    string // "fuse.mica", "erofs", "overlay", …
	Source  string
	Options string // of the mount: "ro,relatime"
	Super   string // of the file system: "ro,device=…"
}

// At returns what is mounted at dir, the lowest first: only the last one is
// visible, those before it lie under it. Empty: dir is no mount point. Mounts above or below dir
// in the tree do not count. Links in dir's parent directories are
// followed; dir itself is not opened, so that a dead FUSE mount can be seen.
func At(dir string) ([]Mount, error) {
	dir, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	// The table has all mounts of the machine, and most directories that are asked for none.
	if _, ok, err := RootAt(dir); err == nil && !ok {
		return nil, nil
	}
	all, err := mounts.read()
	if err != nil {
		return nil, err
	}
	return stack(all[dir]), nil
}

// Top returns the mount that is visible at dir; ok is false where dir is no
// mount point.
func Top(dir string) (m Mount, ok bool, err error) {
	all, err := At(dir)
	if err != nil || len(all) == 0 {
		return Mount{}, false, err
	}
	return all[len(all)-1], true, nil
}

// stack orders the mounts of one directory: each lies on the one that is its
// parent. The lowest has a parent that is mounted elsewhere.
func stack(infos []*mountinfo.Info) []Mount {
	above := make(map[int]*mountinfo.Info, len(infos)) // by parent
	ids := make(map[int]bool, len(infos))
	for _, i := range infos {
		above[i.Parent] = i
		ids[i.ID] = true
	}
	var out []Mount
	for _, i := range infos {
		if ids[i.Parent] {
			continue
		}
		// The chain cannot be longer than the list, whatever the table says.
		for n := 0; i != nil && n < len(infos); n++ {
			out = append(out, Mount{
				ID: i.ID, Device: fmt.Sprintf("%d:%d", i.Major, i.Minor), Root: i.Root,
				Type: i.FSType, Source: i.Source, Options: i.Options, Super: i.VFSOptions,
			})
			i = above[i.ID]
		}
	}
	return out
}

func resolve(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	if dir == "/" {
		return dir, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	return filepath.Join(parent, filepath.Base(dir)), nil
}

// Root is a mount, as statx(2) shows it.
type Root struct {
	ID     int    // Mount.ID
	Device string // Mount.Device
}

// RootAt returns the mount that is visible at dir, without reading the whole mount table. ok is
// false where dir is no mount point, or is not there. The error wraps EOPNOTSUPP before Linux 5.8.
func RootAt(dir string) (r Root, ok bool, err error) {
	st, err := statx(dir)
	if errors.Is(err, os.ErrNotExist) {
		return Root{}, false, nil
	}
	if err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		err = fmt.Errorf("mount at %s: %w", dir, unix.EOPNOTSUPP)
	}
	if err != nil {
		return Root{}, false, err
	}
	return Root{int(st.Mnt_id), fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)}, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// ID returns the number of the mount that is visible at dir, or of its parent's where dir is no
// mount point.
func ID(dir string) (int, error) {
	st, err := statx(dir)
	return int(st.Mnt_id), err
}

// statx returns what the kernel knows of dir by itself: no file system is asked for anything,
// whatever its kind.
func statx(dir string) (st unix.Statx_t, err error) {
	// DONT_SYNC: a FUSE server would be asked else.
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return st, fmt.Errorf("statx %s: %w", dir, err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return st, fmt.Errorf("number of the mount at %s: %w", dir, unix.EOPNOTSUPP)
	}
	return st, nil
}
