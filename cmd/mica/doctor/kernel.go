package doctor

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// release is a version of Linux.
type release struct{ major, minor int }

func (r release) String() string { return fmt.Sprintf("Linux %d.%d", r.major, r.minor) }

func (r release) before(o release) bool {
	return r.major < o.major || r.major == o.major && r.minor < o.minor
}

// The versions of Linux that brought what Mica uses. Distributions have some of it in older ones:
// what can be tried is tried, and only what fails is explained by the version.
var (
	withDevices = release{5, 16} // EROFS with its data on a second device
	withBeneath = release{6, 5}  // a mount takes the place of another (MOVE_MOUNT_BENEATH)
	withResend  = release{6, 9}  // FUSE_NOTIFY_RESEND
	withFiles   = release{6, 12} // EROFS over files, without loop devices
)

// parseRelease reads what uname says, such as "6.1.0-18-amd64".
func parseRelease(s string) (r release, err error) {
	if _, err := fmt.Sscanf(s, "%d.%d", &r.major, &r.minor); err != nil {
		return r, fmt.Errorf("kernel release %q: %w", s, err)
	}
	return r, nil
}

func checkKernel(ctx context.Context, f *Findings, scratch string) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		f.failure("fuse", err.Error(), "Load the module: modprobe fuse")
		return
	}
	if os.Geteuid() != 0 {
		f.warning("kernel", "not root: mounts were not tried", "Run as root: sudo mica doctor")
		return
	}
	if _, err := os.Stat(scratch); err != nil {
		scratch = os.TempDir()
	}
	s, err := erofs.Probe(ctx, scratch)
	if atomicfile.NoRoom(err) {
		f.failure("kernel", err.Error(), "Make room on that disk: mica du shows what images take, "+
			"mica gc --unused frees what no container uses.")
		return
	}
	if err != nil {
		f.failure("kernel", err.Error(),
			"Name a folder on a real filesystem (not overlayfs) with --scratch.")
		return
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.failure("kernel", "uname: "+err.Error(), "")
		return
	}
	f.kernel(s, unix.ByteSliceToString(u.Release[:]))
}

// kernel tells what the kernel of that release can do, as it was tried, and what the rest means.
func (f *Findings) kernel(s erofs.Support, name string) {
	r, err := parseRelease(name)
	if err != nil {
		f.failure("kernel", err.Error(), "")
		return
	}
	for _, mode := range []erofs.Mode{erofs.ModeErofs, erofs.ModeLocal, erofs.ModeFuse} {
		backing, err := s.Backing(mode)
		switch {
		case err == nil && backing == erofs.Loop:
			f.ok("kernel", fmt.Sprintf("mode %s works, by two loop devices a layer (from %s on "+
				"without, by file)",
				mode, withFiles))
		case err == nil && backing != erofs.Auto:
			f.ok("kernel", fmt.Sprintf("mode %s works (by %s)", mode, backing))
		case err == nil:
			f.ok("kernel", fmt.Sprintf("mode %s works", mode))
		case mode == erofs.ModeFuse:
			f.failure("kernel", err.Error(),
				"Lazy layers need FUSE: modprobe fuse, and overlayfs on top of it.")
		default:
			f.warning("kernel", err.Error(), without(mode, r))
		}
	}
	if !s.Resend {
		f.warning("kernel",
			name+" does not hand out again what a micad that ended has left unanswered",
			"When micad ends, by a restart, an upgrade or a crash, reads of lazy layers fail for "+
				"good, and their "+
				"containers have to be started anew; complete layers stay.\n"+withResend.String()+
				" or later lets them wait for the next micad.")
	}
	if r.before(withBeneath) {
		f.warning("kernel", name+" cannot exchange a mount under those who use it",
			"Complete layers stay whole on disk until their image is removed: neither `mica gc "+
				"--unused` nor "+
				"the quota takes them.\n"+withBeneath.String()+" or later can.")
	}
}

// without says what it means that a mode with EROFS does not work on a kernel, and what would help.
func without(mode erofs.Mode, r release) string {
	text := "Lazy layers are served by FUSE alone: right, but slower for many small files.\n"
	if mode == erofs.ModeLocal {
		text = "Complete layers stay served by micad: right, but they depend on it.\n"
	}
	switch {
	case r.before(withDevices):
		return text + r.String() + " has no EROFS with several devices: " + withDevices.String() +
			" or later has it, no module helps."
	case r.before(withFiles):
		return text + "Load the modules erofs and loop (CONFIG_EROFS_FS, CONFIG_BLK_DEV_LOOP)."
	}
	return text + "Load the module erofs (CONFIG_EROFS_FS, CONFIG_EROFS_FS_BACKED_BY_FILE), and " +
		"have micad's " +
		"root on ext4 or XFS."
}
