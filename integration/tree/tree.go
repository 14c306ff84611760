// Package tree describes file trees completely: one line for each path with
// all that lstat, listxattr, readlink and read say of it, so that two trees
// are equal if their lines are. A child process makes the description of a
// mounted tree (cmd/probe), never the one that serves it.
package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Describe writes the lines of the tree at root to w, sorted by path. It does
// not cross into other file systems.
func Describe(w io.Writer, root string) error {
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		return fmt.Errorf("stat %s: %w", root, err)
	}
	d := &describer{w: w, root: root, dev: top.Dev, first: map[uint64]string{}}
	return d.visit(".")
}

type describer struct {
	w     io.Writer
	root  string
	dev   uint64
	first map[uint64]string // by inode: the first path of files with several links
}

func (d *describer) visit(rel string) error {
	path := filepath.Join(d.root, rel)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	line, err := d.describe(rel, path, &st)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(d.w, line); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Dev != d.dev {
		return nil
	}
	entries, err := os.ReadDir(path) // sorted
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := d.visit(filepath.Join(rel, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// describe makes a line: quoted path, then fields NAME=VALUE. Sizes and link
// counts of directories are left out, since they are the file system's own.
func (d *describer) describe(rel, path string, st *unix.Stat_t) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s mode=%o uid=%d gid=%d mtime=%d.%09d", strconv.Quote(rel), st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR {
		fmt.Fprintf(&b, " size=%d nlink=%d", st.Size, st.Nlink)
		if st.Nlink > 1 {
			if _, ok := d.first[st.Ino]; !ok {
				d.first[st.Ino] = rel
			}
			fmt.Fprintf(&b, " link=%q", d.first[st.Ino])
		}
	}
	switch kind {
	case unix.S_IFCHR, unix.S_IFBLK:
		fmt.Fprintf(&b, " dev=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " target=%q", target)
	case unix.S_IFREG:
		sum, n, err := digest(path)
		if err != nil {
			return "", err
		}
		if n != st.Size {
			return "", fmt.Errorf("read %s: %d bytes, stat says %d", path, n, st.Size)
		}
		fmt.Fprintf(&b, " sha256=%s", sum)
	}
	xattrs, err := xattrs(path)
	if err != nil {
		return "", err
	}
	for _, x := range xattrs {
		fmt.Fprintf(&b, " %s", x)
	}
	return b.String(), nil
}

func digest(path string) (sum string, n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// xattrs returns NAME=VALUE of all extended attributes, sorted.
func xattrs(path string) ([]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil, fmt.Errorf("list xattrs of %s: %w", path, err)
	}
	var out []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("xattr %s of %s: %w", name, path, err)
		}
		out = append(out, fmt.Sprintf("%q=%x", name, value[:n]))
	}
	slices.Sort(out)
	return out, nil
}
