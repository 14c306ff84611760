package erofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// Type is the file system type of our mounts in /proc/self/mountinfo.
const Type = "erofs"

// Backing is how the kernel gets at an image and its device.
type Backing string

// The backings. Auto is not one of them, but the wish for the first that works.
const (
	Auto Backing = ""
	File Backing = "file" // both are files
	Loop Backing = "loop" // both are files behind loop devices
)

// Options of a mount; the zero value is good.
type Options struct {
	Backing Backing

	// Buffered makes the kernel read a device that is a file through that
	// file's page cache. Otherwise its pages are read straight into those of the
	// files on the mount, and no second copy of them stays behind.
	Buffered bool

	// ReadAhead is what the kernel reads ahead, in bytes; 0: DefaultReadAhead.
	ReadAhead int

	// Standalone says that the mount works without any process: its device is a file of its own.
	// The mount table shows it by "noatime", which means nothing else here: see Standalone.
	Standalone bool
}

// DefaultReadAhead makes a sequential reader ask for 1 MiB at once, where the
// kernel's own default makes it 128 KiB.
const DefaultReadAhead = 1 << 20

// Mount mounts the image in the file index, whose data lie in the file device,
// read-only at dir, on top of what is mounted there already. It returns the
// backing that was used. Whatever fails leaves nothing behind.
func Mount(index, device, dir string, o Options) (Backing, error) {
	b, err := mount(index, device, dir, o)
	if err != nil {
		return b, fmt.Errorf("mount erofs %s at %s: %w", index, dir, err)
	}
	return b, nil
}

func mount(index, device, dir string, o Options) (Backing, error) {
	for _, p := range []*string{&index, &device, &dir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return o.Backing, err
		}
		*p = abs
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = DefaultReadAhead
	}
	switch o.Backing {
	case File:
		return File, mountFiles(index, device, dir, o)
	case Loop:
		return Loop, mountLoops(index, device, dir, o)
	case Auto:
		fileErr := mountFiles(index, device, dir, o)
		if fileErr == nil {
			return File, nil
		}
		if errors.Is(fileErr, unix.ENOENT) || errors.Is(fileErr, unix.EPERM) {
			return File, fileErr // a loop device would not help
		}
		loopErr := mountLoops(index, device, dir, o)
		if loopErr == nil {
			return Loop, nil
		}
		return Loop, fmt.Errorf("as files: %w; by loop devices: %w", fileErr, loopErr)
	}
	return o.Backing, fmt.Errorf("backing %q: %w", o.Backing, unix.EINVAL)
}

// mountFiles mounts image and device as the files that they are.
func mountFiles(index, device, dir string, o Options) error {
	params := []param{{"source", index}, {"device", device}}
	if !o.Buffered {
		params = append(params, param{"directio", ""})
	}
	err := newErofs(params, dir, o)
	if err != nil && !o.Buffered && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
		// The option came with Linux 6.15; and a backing file may know no
		// direct I/O.
		if newErofs(params[:2], dir, o) == nil {
			return nil
		}
	}
	return err
}

// mountLoops mounts image and device through loop devices, which go when the
// mount does.
func mountLoops(index, device, dir string, o Options) (err error) {
	image, err := openLoop(index)
	if err != nil {
		return err
	}
	data, err := openLoop(device)
	if err != nil {
		return errors.Join(err, image.close())
	}
	err = newErofs([]param{{"source", image.path}, {"device", data.path}}, dir, o)
	if err == nil {
		err = data.readAhead(o.ReadAhead)
	}
	return errors.Join(err, data.close(), image.close())
}

// param is an option of the file system; without a value it is a flag.
type param struct{ key, value string }

// creating keeps mounts apart from the moment that the kernel gives a new file
// system its queue until newErofs has found it.
var creating sync.Mutex

// newErofs makes an EROFS and puts it at dir.
func newErofs(params []param, dir string, o Options) error {
	creating.Lock()
	defer creating.Unlock()
	before, err := queues()
	if err != nil {
		return err
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if o.Standalone {
		attr |= unix.MOUNT_ATTR_NOATIME
	}
	return newMount(Type, append([]param{{"ro", ""}}, params...), attr, dir, func() error {
		return setReadAhead(before, o.ReadAhead)
	})
}

// newMount makes a file system and puts it at dir, with the mount attributes attr; prepare, if not
// nil, is called between. It uses the file-system context calls (fsopen(2), Linux 5.2) and not
// mount(2): a path may then hold a comma, and the kernel says in words what it does not like.
func newMount(fstype string, params []param, attr int, dir string, prepare func() error) (err error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(ctx)) }()
	for _, p := range params {
		if p.value == "" {
			err = unix.FsconfigSetFlag(ctx, p.key)
		} else {
			err = unix.FsconfigSetString(ctx, p.key, p.value)
		}
		if err != nil {
			return fmt.Errorf("option %s: %w%s", p.key, err, complaint(ctx))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return fmt.Errorf("create: %w%s", err, complaint(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return fmt.Errorf("fsmount: %w%s", err, complaint(ctx))
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if prepare != nil {
		if err := prepare(); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// complaint returns what the kernel has to say about a failed call on a
// file-system context.
func complaint(ctx int) string {
	var all []string
	buf := make([]byte, 1024)
	for {
		n, err := unix.Read(ctx, buf) // one message a read, ENODATA at the end
		if err != nil || n <= 2 || len(all) == 16 {
			break
		}
		// "e " is an error, "w " a warning, "i " information.
		all = append(all, strings.TrimSpace(string(buf[2:n])))
	}
	if len(all) == 0 {
		return ""
	}
	return " (" + strings.Join(all, "; ") + ")"
}

// Standalone says whether a mount was made with Options.Standalone.
func Standalone(m mountinfo.Mount) bool {
	return m.Type == Type && slices.Contains(strings.Split(m.Options, ","), "noatime")
}

// Shows says whether a mount is an EROFS of the image in the file index, an absolute path: as far
// as the mount table tells, which knows names only.
func Shows(m mountinfo.Mount, index string) bool {
	if m.Type != Type {
		return false
	}
	if name, ok := strings.CutPrefix(m.Source, "/dev/loop"); ok {
		b, err := os.ReadFile("/sys/block/loop" + filepath.Base(name) + "/loop/backing_file")
		return err == nil && strings.TrimSuffix(string(b), "\n") == index
	}
	return m.Source == index
}

// Unmount takes all EROFS mounts that lie uppermost at dir out of the file
// tree; what uses them keeps them until it ends. Mounts of other types
// under them stay. It is no error if there is none.
func Unmount(dir string) error {
	for {
		m, ok, err := mountinfo.Top(dir)
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		if !ok || m.Type != Type {
			return nil
		}
		if err := UnmountTop(dir); err != nil {
			return err
		}
	}
}

// UnmountTop takes what lies uppermost at dir, which the caller knows, out of the file tree, as
// Unmount does.
func UnmountTop(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
