package fuse_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A mount is never touched by the process that serves it: the test binary runs
// itself again, with these verbs.
var verbs = map[string]func(args []string) error{
	"read":    childRead,
	"random":  childRandom,
	"walk":    childWalk,
	"xattr":   childXattr,
	"names":   childNames,
	"serve":   childServe,
	"hammer":  childHammer,
	"signals": childSignals,
}

const childEnv = "MICA_TEST_CHILD"

func TestMain(m *testing.M) {
	verb := os.Getenv(childEnv)
	if verb == "" {
		os.Exit(m.Run())
	}
	if err := verbs[verb](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		var no unix.Errno
		if errors.As(err, &no) {
			os.Exit(int(no))
		}
		os.Exit(1)
	}
	os.Exit(0)
}

// childCmd makes a command that runs a verb in a child process.
func childCmd(t testing.TB, verb string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	// With the race detector, a program waits a second at its end by default.
	cmd.Env = append(os.Environ(), childEnv+"="+verb, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// inChild runs a verb and returns its output.
func inChild(t testing.TB, verb string, args ...string) []byte {
	t.Helper()
	out, err := tryChild(t, verb, args...)
	if err != nil {
		t.Fatalf("%s %q: %v", verb, args, err)
	}
	return out
}

// tryChild runs a verb; an errno that the child met comes back as such.
func tryChild(t testing.TB, verb string, args ...string) ([]byte, error) {
	t.Helper()
	var out, msg bytes.Buffer
	cmd := childCmd(t, verb, args...)
	cmd.Stdout, cmd.Stderr = &out, &msg
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 1 {
		return nil, fmt.Errorf("%s: %w", strings.TrimSpace(msg.String()),
			unix.Errno(exit.ExitCode()))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, msg.String())
	}
	return out.Bytes(), nil
}

// childRead: FILE OFF N [direct] copies the range to standard output; N < 0: to the end.
func childRead(args []string) error {
	off, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}
	flags := os.O_RDONLY
	if len(args) > 3 && args[3] == "direct" {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(args[0], flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n < 0 {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		n = fi.Size() - off
	}
	buf := aligned(int(n))
	k, err := f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = os.Stdout.Write(buf[:k])
	return err
}

func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[skip : skip+n]
}

// childRandom: FILE REFERENCE SEED COUNT MAX compares COUNT random ranges of at
// most MAX bytes.
func childRandom(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	want, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	seed, _ := strconv.ParseUint(args[2], 10, 64)
	count, _ := strconv.Atoi(args[3])
	most, _ := strconv.Atoi(args[4])
	rng := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, most)
	for range count {
		off := rng.IntN(len(want))
		n := min(1+rng.IntN(most), len(want)-off)
		if _, err := f.ReadAt(buf[:n], int64(off)); err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
		}
		if !bytes.Equal(buf[:n], want[off:off+n]) {
			return fmt.Errorf("%d bytes at %d differ", n, off)
		}
	}
	return nil
}

// entry is all that stat(2), listxattr(2) and read(2) say about a path.
type entry struct {
	Path    string
	Ino     uint64
	Mode    uint32
	Nlink   uint64
	UID     uint32
	GID     uint32
	Rdev    uint64
	Size    int64
	Blocks  int64
	Blksize int64
	Sec     int64
	Nsec    int64
	Target  string
	Xattrs  map[string]string
	Sum     string // sha256 of a regular file
}

// childWalk: DIR prints an entry, as JSON, for everything in a tree.
func childWalk(args []string) error {
	out := json.NewEncoder(os.Stdout)
	return filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := inspect(path)
		if err != nil {
			return err
		}
		if got, want := d.Type(), modeType(e.Mode); path != args[0] && got != want {
			return fmt.Errorf("%s: readdir says %v, lstat %v", path, got, want)
		}
		e.Path, err = filepath.Rel(args[0], path)
		if err != nil {
			return err
		}
		return out.Encode(e)
	})
}

func modeType(mode uint32) fs.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		return fs.ModeDevice
	case unix.S_IFSOCK:
		return fs.ModeSocket
	}
	return 0
}

func inspect(path string) (entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return entry{}, fmt.Errorf("lstat %s: %w", path, err)
	}
	e := entry{
		Ino: st.Ino, Mode: st.Mode, Nlink: st.Nlink, UID: st.Uid, GID: st.Gid, Rdev: st.Rdev,
		Size:   st.Size,
		Blocks: st.Blocks, Blksize: st.Blksize, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec,
		Xattrs: map[string]string{},
	}
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return e, fmt.Errorf("llistxattr %s: %w", path, err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:max(n, 0)]), "\x00"),
		"\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return e, fmt.Errorf("lgetxattr %s %s: %w", path, name, err)
		}
		e.Xattrs[name] = string(value[:n])
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if e.Target, err = os.Readlink(path); err != nil {
			return e, err
		}
	case unix.S_IFREG:
		f, err := os.Open(path)
		if err != nil {
			return e, err
		}
		defer f.Close()
		h := sha256.New()
		n, err := io.Copy(h, f)
		if err != nil {
			return e, err
		}
		if n != st.Size {
			return e, fmt.Errorf("%s: read %d of %d bytes", path, n, st.Size)
		}
		e.Sum = hex.EncodeToString(h.Sum(nil))
	}
	return e, nil
}

// childXattr: PATH NAME prints an extended attribute.
func childXattr(args []string) error {
	value := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(args[0], args[1], value)
	if err != nil {
		return fmt.Errorf("lgetxattr: %w", err)
	}
	_, err = os.Stdout.Write(value[:n])
	return err
}

// childNames: DIR CHUNK prints a directory's names, read with getdents buffers of
// CHUNK bytes, closing and seeking back to a remembered position on the
// way.
func childNames(args []string) error {
	chunk, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	buf := make([]byte, chunk)
	var pos int64
	for {
		fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if _, err := unix.Seek(fd, pos, io.SeekStart); err != nil {
			return err
		}
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		for b := buf[:n]; len(b) > 0; {
			// struct linux_dirent64: inode, position behind it, size, type, name.
			size := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := bytes.Cut(b[19:size], []byte{0})
			fmt.Println(string(name))
			pos = int64(binary.NativeEndian.Uint64(b[8:]))
			b = b[size:]
		}
	}
}
