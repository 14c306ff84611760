package erofs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// bdis is where the kernel lists the queues that have a readahead of their own.
const bdis = "/sys/class/bdi"

// queues returns the names of EROFS's queues. A file system over files has one,
// "erofs-N"; N is told nowhere else.
func queues() (map[string]bool, error) {
	entries, err := os.ReadDir(bdis)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // no /sys: no readahead to set
		}
		return nil, fmt.Errorf("list queues: %w", err)
	}
	names := make(map[string]bool)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), Type+"-") {
			names[e.Name()] = true
		}
	}
	return names, nil
}

// setReadAhead sets what the kernel reads ahead, in bytes, on the queues that
// have appeared since before.
func setReadAhead(before map[string]bool, n int) error {
	now, err := queues()
	if err != nil {
		return err
	}
	for name := range now {
		if before[name] {
			continue
		}
		if err := writeReadAhead(filepath.Join(bdis, name), n); err != nil {
			return err
		}
	}
	return nil
}

// writeReadAhead does that in a directory of /sys. One that may not be written (a container's)
// leaves the default: slower, and nothing else. One that has gone meanwhile was another mount's.
func writeReadAhead(dir string, n int) error {
	err := os.WriteFile(filepath.Join(dir, "read_ahead_kb"), []byte(strconv.Itoa(n>>10)), 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}
