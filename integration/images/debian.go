package images

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// epoch is the time of what is made up here.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// The program of the Debian image prints Started as soon as it runs, and as
// its last line Ready, after work that imports a good part of Python.
const (
	Started = "started"
	Ready   = "ready"
)

//go:embed main.py
var program string

// steps of the Debian image, above mmdebstrap's minimal system.
var steps = []Step{
	{"common",
		"apt-get install -y -q --no-install-recommends ca-certificates netbase tzdata procps"},
	{"python", "apt-get install -y -q --no-install-recommends python3"},
	{"libraries", "apt-get install -y -q --no-install-recommends python3-yaml python3-cryptography libcap2-bin"},
	// whiteouts, an opaque directory, a replaced file, hard links, a capability
	{"changes", `rm -rf /usr/share/man /usr/share/info && mkdir -p /usr/share/info && echo replaced >/usr/share/info/README
rm -f /etc/motd /usr/share/doc/*/changelog*
mkdir -p /srv/links && echo one >/srv/links/a && ln /srv/links/a /srv/links/b && ln /usr/bin/env /srv/links/env
cp /bin/true /srv/links/capable && setcap cap_net_bind_service=+ep /srv/links/capable
mknod /srv/links/fifo p`},
	{"program", `mkdir -p /app && cat >/app/main.py <<'EOF'
` + program + `EOF
printf '#!/bin/sh\necho ` + Started + `\nexec python3 /app/main.py\n' >/app/run && chmod 755 /app/run`},
}

// Layers is the number of layers of the Debian image.
var Layers = len(steps) + 1

// Debian returns the image of a Debian system (or Ubuntu, as this machine's)
// with Python in 6 layers, built as Recipe.Build says.
func Debian(ctx context.Context) (v1.Image, error) {
	return Recipe{Steps: steps, Cmd: []string{"/app/run"}}.Build(ctx)
}

// Cache is the directory in which built things are kept between runs:
// $MICA_CACHE, or mica in the user's cache directory, as in script/tools.sh.
func Cache() (string, error) {
	if dir := os.Getenv("MICA_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "mica"), nil
}

// lock waits until no other process holds the file, and holds it until the
// returned function is called.
func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// release is the name of this machine's release, e.g. bookworm.
func release() (string, error) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"`), nil
		}
	}
	return "", errors.New("/etc/os-release names no release: not a Debian or Ubuntu")
}

// builder stacks layers in directories, as overlayfs does.
type builder struct {
	dir    string
	uppers []string // directories of the layers so far, lowest first
	layers []v1.Layer
}

// base makes the lowest layer: the minimal system.
func (b *builder) base(ctx context.Context, sys string) error {
	tar := filepath.Join(b.dir, "base.tar")
	if err := run(ctx, "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root",
		`--customize-hook=: >"$1/etc/resolv.conf"`, sys, tar); err != nil {
		return err
	}
	upper := filepath.Join(b.dir, "base")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	if err := run(ctx, "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", tar,
		"-C", upper); err != nil {
		return err
	}
	b.uppers = append(b.uppers, upper)
	return b.compress("base", func(w io.Writer) error {
		f, err := os.Open(tar)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}

// step makes the next layer: the changes of a script, by containerd's differ.
func (b *builder) step(ctx context.Context, s Step) (err error) {
	base := filepath.Join(b.dir, s.Name)
	upper, work, root, below := base+"/upper", base+"/work", base+"/root", base+"/below"
	for _, d := range []string{upper, work, root, below, b.dir + "/archives/partial",
		b.dir + "/lists/partial"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	var lower []string
	for _, u := range b.uppers {
		lower = append([]string{u}, lower...)
	}
	m := &mounts{}
	defer func() { err = errors.Join(err, m.undo()) }()
	if len(lower) == 1 { // overlayfs wants two
		lower = append(lower, b.dir+"/lists/partial")
	}
	m.mount("overlay", below, "overlay", 0, "lowerdir="+strings.Join(lower, ":"))
	m.mount("overlay", root, "overlay", 0,
		"lowerdir="+strings.Join(lower, ":")+",upperdir="+upper+",workdir="+work)
	inner := &mounts{}
	inner.mount("proc", root+"/proc", "proc", 0, "")
	inner.mount("/dev", root+"/dev", "", unix.MS_BIND, "")
	inner.mount(b.dir+"/archives", root+"/var/cache/apt/archives", "", unix.MS_BIND, "")
	inner.mount(b.dir+"/lists", root+"/var/lib/apt/lists", "", unix.MS_BIND, "")
	inner.mount("/etc/resolv.conf", root+"/etc/resolv.conf", "", unix.MS_BIND, "")
	for _, d := range []string{"/tmp", "/run", "/var/log"} {
		inner.mount("tmpfs", root+d, "tmpfs", 0, "")
	}
	if err := errors.Join(m.err, inner.err); err != nil {
		return errors.Join(err, inner.undo())
	}
	script := "unset TMPDIR\nexport DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root\n" + s.Script
	if strings.Contains(s.Script, "apt-get") {
		script = "apt-get update -q\n" + script + "\nrm -f /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache"
	}
	err = run(ctx, "chroot", root, "/bin/sh", "-ec", script)
	if err := errors.Join(err, inner.undo()); err != nil {
		return err
	}
	b.uppers = append(b.uppers, upper)
	return b.compress(s.Name, func(w io.Writer) error {
		return archive.WriteDiff(ctx, w, below, root)
	})
}

// compress makes a layer of the tar that write produces.
func (b *builder) compress(name string, write func(io.Writer) error) error {
	path := filepath.Join(b.dir, name+".tar.gz")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	if err := write(z); err != nil {
		return err
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		return err
	}
	layer, err := tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return err
	}
	b.layers = append(b.layers, layer)
	return nil
}

// mounts is a list of mounts that are undone together; after the first error
// no more are made.
type mounts struct {
	points []string
	err    error
}

func (m *mounts) mount(source, target, fstype string, flags uintptr, data string) {
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		m.err = fmt.Errorf("mount %s: %w", target, err)
		return
	}
	m.points = append(m.points, target)
}

func (m *mounts) undo() error {
	var errs []error
	for i := len(m.points) - 1; i >= 0; i-- {
		if err := unix.Unmount(m.points[i], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.points[i], err))
		}
	}
	m.points = nil
	return errors.Join(errs...)
}

// run runs a command; its output goes into the error.
func run(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is sent when this thread ends
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		if len(out) > 2000 {
			out = out[len(out)-2000:]
		}
		return fmt.Errorf("%s: %w:\n%s", argv[0], err, bytes.TrimSpace(out))
	}
	return nil
}
