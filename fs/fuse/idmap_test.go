package fuse_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
)

// userNamespace returns a user namespace in which outside's IDs from base on are
// 0 and up. It lasts as long as the test.
func userNamespace(t *testing.T, base int) *os.File {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sleep", "600")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids,
		GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns/user"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Layers can be mounted again with other owners, as containers in user
// namespaces need.
func TestIDMappedMount(t *testing.T) {
	b := layertest.NewBuilder()
	b.File("owned", 0o640, []byte("x")).UID = 1000
	l := b.Make(t)
	for _, top := range []string{"fuse", "erofs"} {
		t.Run(top, func(t *testing.T) {
			const base = 100_000
			ns := userNamespace(t, base)
			dir := mountTop(t, top, l, &memDevice{data: l.Data}, erofs.Options{})
			fd, err := unix.OpenTree(unix.AT_FDCWD, dir,
				unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
				t.Fatalf("mount_setattr: %v", err)
			}
			mapped := t.TempDir()
			if err := unix.MoveMount(fd, "", unix.AT_FDCWD, mapped,
				unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Unmount(mapped, unix.MNT_DETACH) }()
			e := walk(t, mapped)["owned"]
			if e.UID != base+1000 || e.GID != base || e.Sum == "" {
				t.Errorf("owner %d:%d, want %d:%d", e.UID, e.GID, base+1000, base)
			}
		})
	}
}
