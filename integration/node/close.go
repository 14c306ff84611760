package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Close ends the node and removes all its traces. A daemon that did not live
// until now, or did not stop when told to, is an error.
func (n *Node) Close() error {
	errs := []error{n.closeClient(), n.killShims()}
	if n.containerd != nil {
		errs = append(errs, n.StopContainerd())
	}
	if n.micad != nil {
		errs = append(errs, n.StopMicad())
	}
	errs = append(errs, unmountBelow(n.Dir))
	if n.disk != nil {
		errs = append(errs, n.disk.Close())
	}
	errs = append(errs, n.removeCgroups(), os.RemoveAll(n.Dir))
	return errors.Join(errs...)
}

// killShims ends all containers of this node and their shims, which are found
// by containerd's address on their command lines.
func (n *Node) killShims() error {
	shims, err := pidsWith("containerd-shim-runc-v2", n.Address())
	if err != nil {
		return err
	}
	var all []int
	for _, pid := range shims {
		// containers first: their shim would restart nothing, but reaps them
		for _, child := range children(pid) {
			_ = syscall.Kill(child, syscall.SIGKILL)
			all = append(all, child)
		}
	}
	if len(all) > 0 {
		time.Sleep(20 * time.Millisecond)
	}
	for _, pid := range shims {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		all = append(all, pid)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, pid := range all {
		for alive(pid) {
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d of %s does not end", pid, n.Dir)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// pidsWith finds the processes whose first argument ends in name and that have
// the argument arg.
func pidsWith(name, arg string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		argv := strings.Split(string(b), "\x00")
		if strings.HasSuffix(argv[0], name) && slices.Contains(argv[1:], arg) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// children are the processes that any thread of a process has started.
func children(pid int) []int {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// alive tells a running process from one that has ended or only waits to be reaped.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := bytes.Cut(b, []byte(") "))
	return len(after) > 0 && after[0] != 'Z' && after[0] != 'X'
}

// Mounts returns the mount points at and below dir, in the order of mounting.
func Mounts(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		// blanks and the like stand as octal escapes; nothing here has any
		if p := f[4]; p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	return points, nil
}

func unmountBelow(dir string) error {
	points, err := Mounts(dir)
	if err != nil {
		return err
	}
	slices.Reverse(points)
	var errs []error
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// removeCgroups removes the control groups below those named by Namespace, in
// every hierarchy: what runc leaves when its container is killed from outside.
func (n *Node) removeCgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + n.Namespace())
	if err != nil {
		return err
	}
	roots = append(roots, "/sys/fs/cgroup/"+n.Namespace())
	var errs []error
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // gone meanwhile, or never there
		})
		if err != nil {
			errs = append(errs, err)
		}
		slices.Reverse(dirs)
		for _, d := range dirs {
			errs = append(errs, removeCgroup(d))
		}
	}
	return errors.Join(errs...)
}

// removeCgroup waits for the kernel, which lets go of a killed process late.
func removeCgroup(dir string) error {
	var err error
	for range 100 {
		if err = unix.Rmdir(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("remove control group %s: %w", dir, err)
}
