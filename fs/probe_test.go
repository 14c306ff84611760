package fs

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
)

// TestProbeOnFullDisk: for want of space nothing is said of the kernel. It is tried again, and what
// it can do is found when there is room.
func TestProbeOnFullDisk(t *testing.T) {
	dir := testDir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // the test has ended
	inodes := func(n int) {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, fmt.Sprintf("nr_inodes=%d", n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, room := range []int{3, 10} { // not for all folders; for these, but not for an overlay's own
		support := supported(t.Context(), dir, erofs.Probe)
		inodes(room)
		if s, err := support(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("room for %d: %v, %v", room, s, err)
		}
		inodes(100)
		s, err := support()
		if err == nil {
			_, err = s.Backing(erofs.ModeFuse)
		}
		if err != nil {
			t.Errorf("with room again: %v", err)
		}
	}
}
