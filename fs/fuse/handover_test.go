package fuse_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
	"github.com/mica-snapshotter/mica/index"
)

// fileDevice is a Device that takes its time, so that a server that is killed always leaves
// requests behind.
type fileDevice struct {
	f    *os.File
	size int64
}

func (d fileDevice) Size() int64 { return d.size }

func (d fileDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	time.Sleep(2 * time.Millisecond)
	_, err := d.f.ReadAt(p, off)
	return err
}

// childServe: KIND DIR INDEX DEVICE SIZE [SAVED] serves a mount until it is killed. It adopts what
// SAVED describes, whose descriptor is number 4, or makes a mount and sends what describes it, with
// the descriptor, through the socket that is number 3.
func childServe(args []string) error {
	size, err := strconv.ParseInt(args[4], 10, 64)
	if err != nil {
		return err
	}
	f, err := os.Open(args[3])
	if err != nil {
		return err
	}
	x, err := os.Open(args[2])
	if err != nil {
		return err
	}
	st, err := x.Stat()
	if err != nil {
		return err
	}
	layer, err := index.Open(x, st.Size())
	if err != nil {
		return err
	}
	dev, ctx := fileDevice{f, size}, context.Background()
	if len(args) > 5 {
		var s fuse.Saved
		if err := json.Unmarshal([]byte(args[5]), &s); err != nil {
			return err
		}
		held := os.NewFile(4, "held")
		if s.Kind == fuse.KindDevice {
			_, err = fuse.AdoptDevice(ctx, held, s, dev, fuse.Options{})
		} else {
			_, err = fuse.AdoptTree(ctx, held, s, layer, dev, fuse.Options{})
		}
	} else {
		err = childMount(ctx, args, layer, dev)
	}
	if err != nil {
		return err
	}
	fmt.Println("serving")
	select {}
}

func childMount(ctx context.Context, args []string, layer *index.Layer, dev fuse.Device) error {
	var m *fuse.Mount
	var err error
	if args[0] == string(fuse.KindDevice) {
		m, err = fuse.MountDevice(ctx, args[1], dev, fuse.Options{})
	} else {
		m, err = fuse.MountTree(ctx, args[1], layer, dev, fuse.Options{})
	}
	if err != nil {
		return err
	}
	s, ok := m.Saved()
	if !ok {
		return errors.New("this kernel cannot hand over a connection")
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	d, err := m.Descriptor()
	if err != nil {
		return err
	}
	return unix.Sendmsg(3, b, unix.UnixRights(int(d.Fd())), nil, 0)
}

// childHammer: FILE REFERENCE SEED reads random ranges of FILE, past the page cache, and compares
// them, until its standard input ends. It prints how many it has read and how long the longest read
// took.
func childHammer(args []string) error {
	want, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = os.Stdin.Read(make([]byte, 1))
	}()
	seed, _ := strconv.ParseUint(args[2], 10, 64)
	rng := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 300_000)
	var f *os.File
	var longest time.Duration
	reads := 0
	for ; ; reads++ {
		select {
		case <-done:
			fmt.Println(reads, longest.Milliseconds())
			return f.Close()
		default:
		}
		if reads%20 == 0 {
			if err := f.Close(); f != nil && err != nil {
				return err
			}
			if f, err = os.Open(args[0]); err != nil {
				return err
			}
		}
		off := rng.IntN(len(want))
		n := min(1+rng.IntN(len(buf)), len(want)-off)
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		start := time.Now()
		if _, err := f.ReadAt(buf[:n], int64(off)); err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
		}
		longest = max(longest, time.Since(start))
		if !bytes.Equal(buf[:n], want[off:off+n]) {
			return fmt.Errorf("%d bytes at %d differ", n, off)
		}
	}
}

// server runs childServe again and again, and keeps the descriptor meanwhile.
type server struct {
	t     *testing.T
	args  []string
	saved fuse.Saved
	held  *os.File
	cmd   *exec.Cmd
}

// start starts the child and waits until it serves.
func (s *server) start() {
	s.t.Helper()
	args, files := s.args, []*os.File{nil, s.held}
	var pair [2]int
	if s.held == nil {
		var err error
		if pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC,
			0); err != nil {
			s.t.Fatal(err)
		}
		files = []*os.File{os.NewFile(uintptr(pair[1]), "socket")}
	} else {
		b, err := json.Marshal(s.saved)
		if err != nil {
			s.t.Fatal(err)
		}
		args = append(args, string(b))
	}
	s.cmd = childCmd(s.t, "serve", args...)
	s.cmd.ExtraFiles, s.cmd.Stderr = files, os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		s.t.Fatalf("the server says %q: %v", line, err)
	}
	if s.held != nil {
		return
	}
	s.t.Cleanup(func() { s.kill() })
	b, oob := make([]byte, 8192), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(pair[0], b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(json.Unmarshal(b[:n], &s.saved), unix.Close(pair[0]),
		files[0].Close()); err != nil {
		s.t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		s.t.Fatalf("control messages: %v, %v", messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		s.t.Fatalf("descriptors: %v, %v", fds, err)
	}
	s.held = os.NewFile(uintptr(fds[0]), "held")
	s.t.Cleanup(func() { // what still waits for an answer gets ENOTCONN
		if err := s.held.Close(); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// A mount whose server is killed, again and again, under readers: no read fails, and none sees a
// wrong byte.
func TestKilledServer(t *testing.T) {
	const kills, readers = 12, 4
	data := layertest.Random(4<<20, 21)
	b := layertest.NewBuilder()
	b.File("big", 0o644, data)
	l := b.Make(t)
	ref := filepath.Join(t.TempDir(), "ref")
	if err := os.WriteFile(ref, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []fuse.Kind{fuse.KindDevice, fuse.KindTree} {
		t.Run(string(kind), func(t *testing.T) {
			dir := t.TempDir()
			s := &server{t: t,
				args: []string{string(kind), dir, l.Index, l.Device, strconv.Itoa(len(l.Data))}}
			s.start()
			t.Cleanup(func() {
				if err := fuse.Detach(s.args[1]); err != nil {
					t.Error(err)
				}
			})
			if kind == fuse.KindDevice {
				dir = t.TempDir()
				if _, err := erofs.Mount(l.Index, filepath.Join(s.args[1], fuse.DeviceName), dir,
					erofs.Options{}); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := erofs.Unmount(dir); err != nil {
						t.Error(err)
					}
				})
			}
			var hammers []*exec.Cmd
			var outs []*bytes.Buffer
			var stops []func() error
			for i := range readers {
				cmd, out := childCmd(t, "hammer", filepath.Join(dir, "big"), ref,
					strconv.Itoa(i)), &bytes.Buffer{}
				cmd.Stdout, cmd.Stderr = out, out
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				hammers, outs, stops = append(hammers, cmd), append(outs, out), append(stops,
					in.Close)
			}
			for range kills {
				time.Sleep(time.Duration(50+rand.IntN(100)) * time.Millisecond)
				s.kill()
				// Requests come in while nobody serves, and callers go away.
				walker := childCmd(t, "walk", dir)
				if err := walker.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond)
				_ = walker.Process.Kill()
				s.start()
				_ = walker.Wait()
			}
			for i, cmd := range hammers {
				_ = stops[i]()
				if err := cmd.Wait(); err != nil {
					t.Errorf("reader %d: %v: %s", i, err, outs[i])
					continue
				}
				f := strings.Fields(outs[i].String())
				reads, _ := strconv.Atoi(f[0])
				longest, _ := strconv.Atoi(f[1])
				t.Logf("%d reads, the longest %d ms", reads, longest)
				if reads < kills {
					t.Errorf("%d reads during %d kills", reads, kills)
				}
			}
			got := walk(t, dir)["big"]
			if want := expected(l)["big"]; got.Sum != want.Sum || got.Size != want.Size {
				t.Errorf("afterwards: %+v, want %+v", got, want)
			}
		})
	}
}

// Leave makes callers wait for the next server, in the same process even; a lost layer is EIO until
// it is back.
func TestLeaveAndAdopt(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	data := layertest.Random(1<<20, 22)
	stuck := make(chan struct{})
	m, err := fuse.MountDevice(t.Context(), t.TempDir(),
		&memDevice{data: data, before: func(ctx context.Context, _ int64, _ int) error {
			close(stuck)
			<-ctx.Done()
			return ctx.Err()
		}}, fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	saved, ok := m.Saved()
	at, there, err := mountinfo.Top(m.Dir())
	if !ok || err != nil || !there || at.Device != saved.Device || at.ID != saved.ID ||
		saved.Dir != m.Dir() {
		t.Fatalf("saved %+v (%v), mounted %+v (%v)", saved, ok, at, err)
	}
	held, err := m.Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := childCmd(t, "read", m.DevicePath(), "0", "4096", "direct")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-stuck
	if err := m.Leave(); err != nil {
		t.Fatal(err)
	}
	if !fuse.Alive(held) {
		t.Error("the connection is dead")
	}

	again := duplicate(t, held)
	if m, err = fuse.AdoptDevice(t.Context(), again, saved, &memDevice{data: data},
		fuse.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !bytes.Equal(out.Bytes(), data[:4096]) {
		t.Errorf("the read under way: %v, %d bytes", err, out.Len())
	}
	if err := m.Leave(); err != nil {
		t.Fatal(err)
	}

	if m, err = fuse.AdoptLost(t.Context(), duplicate(t, held), saved, fuse.Options{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := tryChild(t, "read", m.DevicePath(), "8192", "4096", "direct"); !errors.Is(err,
			unix.EIO) {
			t.Errorf("a lost layer: %v, want EIO", err)
		}
	}
	if err := m.Leave(); err != nil {
		t.Fatal(err)
	}

	if m, err = fuse.AdoptDevice(t.Context(), duplicate(t, held), saved, &memDevice{data: data},
		fuse.Options{}); err != nil {
		t.Fatal(err)
	}
	if got := inChild(t, "read", m.DevicePath(), "0", "-1"); !bytes.Equal(got, data) {
		t.Error("wrong bytes")
	}
	if n := m.Stats().Errors; n > 0 {
		t.Errorf("%d errors", n)
	}
	if err := m.Unmount(); err != nil {
		t.Fatal(err)
	}
	if fuse.Alive(held) {
		t.Error("the connection lives on without its mount")
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, ignore)
}

func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	d, err := fuse.Duplicate(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What cannot be adopted is refused, and its descriptor closed.
func TestAdoptRefuses(t *testing.T) {
	data := make([]byte, 4096)
	m := mountDevice(t, &memDevice{data: data}, fuse.Options{})
	saved, _ := m.Saved()
	wrong := map[string]func(s *fuse.Saved){
		"kind":       func(s *fuse.Saved) { s.Kind = fuse.KindTree },
		"no INIT":    func(s *fuse.Saved) { s.Init = nil },
		"short INIT": func(s *fuse.Saved) { s.Init = s.Init[:41] },
		"other":      func(s *fuse.Saved) { s.Init = bytes.Repeat([]byte{1}, 104) },
	}
	for name, change := range wrong {
		t.Run(name, func(t *testing.T) {
			s := saved
			s.Init = bytes.Clone(saved.Init)
			change(&s)
			d, err := m.Descriptor()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fuse.AdoptDevice(t.Context(), d, s, &memDevice{data: data},
				fuse.Options{}); err == nil {
				t.Error("adopted")
			}
			if err := d.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("its descriptor: %v, want it closed", err)
			}
		})
	}
}
