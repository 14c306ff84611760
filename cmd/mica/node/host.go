package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// podRoot names the root folder of the pod to the process that has left it.
const podRoot = "MICA_POD_ROOT"

// hostPath is where programs are looked for on the host, after Options.Bin.
const hostPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// errNoPod is returned outside the pod that the Helm chart makes.
var errNoPod = errors.New("this is no privileged pod with hostPID: mica node is run by the Helm " +
	"chart; on a host use a package and mica setup (docs/setup.md)")

// Enter makes the pod's process one of the host, in the namespaces of the host's first process: it
// runs the same command line there, from a copy of its program in memory, because the files of the
// pod's image may be Mica's own. Enter does not return then, and returns nil on the host.
func Enter() error {
	if root := os.Getenv(podRoot); root != "" {
		fd, err := strconv.Atoi(path.Base(root))
		unix.CloseOnExec(fd) // what is started on the host does not hold the pod's files
		return err
	}
	here, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if there, err := os.Readlink("/proc/1/ns/mnt"); err != nil || here == there {
		return errNoPod
	}
	program, err := inMemory("/proc/self/exe")
	if err != nil {
		return err
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0) // the next program has it, too
	if err != nil {
		return fmt.Errorf("open the pod's root: %w", err)
	}
	runtime.LockOSThread() // it becomes the next program's only thread
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the pod: %w", err)
	}
	var spaces []int
	for _, name := range []string{"cgroup", "ipc", "uts", "net", "mnt"} { // mnt has another /proc
		fd, err := unix.Open("/proc/1/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the host's namespace %s: %w", name, err)
		}
		spaces = append(spaces, fd)
	}
	for _, fd := range spaces {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("enter the host's namespaces: %w", err)
		}
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), os.Args, []string{
		"PATH=" + hostPath, "HOME=/root", podUID + "=" + os.Getenv(podUID),
		fmt.Sprintf("%s=/proc/self/fd/%d", podRoot, root)})
}

// inMemory is a copy of a file that is not on disk.
func inMemory(path string) (*os.File, error) {
	from, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	fd, err := unix.MemfdCreate("mica", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("copy the program to memory: %w", err)
	}
	to := os.NewFile(uintptr(fd), "mica")
	_, err = io.Copy(to, from)
	return to, err
}

// podFile is a file of the pod's image.
func podFile(path string) ([]byte, error) { return os.ReadFile(os.Getenv(podRoot) + path) }

// systemd says whether it is the host's init: sd_booted(3).
func systemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// keeper is the process of the micad keep that has started a micad; 0: something else has.
func keeper(micad int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", micad))
	if err != nil {
		return 0
	}
	var state string
	var pid int
	after := stat[strings.LastIndex(string(stat), ")")+1:] // the name may have brackets, too
	if _, err := fmt.Sscan(string(after), &state, &pid); err != nil {
		return 0
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if args := strings.Split(string(line), "\x00"); err != nil || len(args) < 2 || args[1] != "keep" {
		return 0
	}
	return pid
}
