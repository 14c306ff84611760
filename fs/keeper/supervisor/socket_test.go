package supervisor

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// served is a socket that takes this process for its child, without a goroutine: datagrams wait
// until drain.
func served(t *testing.T, max int, log io.Writer) *socket {
	t.Helper()
	s, err := listen(newStore(max), slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	s.child = os.Getpid()
	return s
}

// client is a connection to a socket; nothing it does waits.
type client struct {
	t  *testing.T
	fd int
}

func dial(t *testing.T, s *socket) *client {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: s.addr}); err != nil {
		t.Fatal(err)
	}
	return &client{t, fd}
}

func (c *client) send(msg string, fds ...int) {
	c.t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(c.fd, []byte(msg), oob, nil, 0); err != nil {
		c.t.Fatalf("send %.40q: %v", msg, err)
	}
}

// memory is a new open file.
func memory(t *testing.T) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// heldNames is what a child would see in $LISTEN_FDNAMES.
func heldNames(s *socket) string {
	_, names := s.store.list()
	return strings.Join(names, ":")
}

func TestNotifications(t *testing.T) {
	type message struct {
		text string
		fds  string // a letter for each: equal letters are one open file
	}
	const store = "FDSTORE=1\nFDNAME="
	for _, tt := range []struct {
		name string
		in   []message
		held string
	}{
		{"in the order stored",
			[]message{{store + "b", "1"}, {store + "a", "2"}, {store + "b", "3"}}, "b:a:b"},
		{"several at once", []message{{store + "a", "123"}}, "a:a:a"},
		{"other lines", []message{{"X=1\nFDPOLL=0\n" + store + "a\nWATCHDOG=1\nnonsense\n", "1"}},
			"a"},
		{"without a name", []message{{"FDSTORE=1", "1"}}, "stored"},
		{"with a name that is none",
			[]message{{store + "a:b", "1"}, {store + "\x01", "2"},
				{store + strings.Repeat("x", 256), "3"}}, "stored:stored:stored"},
		{"the longest name", []message{{store + strings.Repeat("x", 255), "1"}},
			strings.Repeat("x", 255)},
		{"one file twice", []message{{store + "a", "1"}, {store + "a", "1"}, {store + "b", "11"}},
			"a"},
		{"without descriptors", []message{{store + "a", ""}}, ""},
		{"removed", []message{{store + "a", "1"}, {store + "b", "2"}, {store + "a", "3"},
			{"FDSTOREREMOVE=1\nFDNAME=a", ""}}, "b"},
		{"removed and stored again",
			[]message{{store + "a", "1"}, {"FDSTOREREMOVE=1\nFDNAME=a", ""},
				{store + "a", "1"}}, "a"},
		{"removed while another is stored",
			[]message{{store + "a", "1"}, {"FDSTOREREMOVE=1\n" + store + "a", "2"}}, ""},
		{"removed under no name",
			[]message{{store + "a", "1"}, {"FDSTOREREMOVE=1", ""},
				{"FDSTOREREMOVE=1\nFDNAME=b", ""}}, "a"},
		{"descriptors with no word of them", []message{{"READY=1", "12"}, {"", "3"}}, ""},
		{"not 1", []message{{"FDSTORE=0\nFDNAME=a", "1"}, {"FDSTORE=11\nFDNAME=a", "2"},
			{"fdstore=1\nFDNAME=a", "3"}}, ""},
		{"garbage", []message{{"\xff\xfe=\x80\n=\n==\n\n", "1"}, {strings.Repeat("=", 4096), "2"},
			{"\n", ""}}, ""},
		{"a zero byte", []message{{store + "a\x00b", "1"}, {store + "c\x00", "2"}}, "c"},
		{"the largest message",
			[]message{{"X=" + strings.Repeat("x", 4096-len("X=\n"+store+"a")) + "\n" + store + "a",
				"1"}}, "a"},
		{"too large a message", []message{{store + "a\nX=" + strings.Repeat("x", 4096), "1"}}, ""},
		{"a barrier that stores", []message{{"BARRIER=1\n" + store + "a", "1"}}, ""},
		{"more than there is room for",
			[]message{{store + "a", "1234"}, {store + "b", "567"},
				{store + "c", "8"}}, "a:a:a:a:b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := served(t, 5, io.Discard)
			c := dial(t, s)
			files := make(map[rune]int)
			for _, m := range tt.in {
				var fds []int
				for _, letter := range m.fds {
					if _, ok := files[letter]; !ok {
						files[letter] = memory(t)
					}
					fds = append(fds, files[letter])
				}
				before := openFiles(t) - s.held()
				c.send(m.text, fds...)
				s.drain()
				if now := openFiles(t) - s.held(); now != before {
					t.Fatalf("%.40q leaves %d files open", m.text, now-before)
				}
			}
			if got := heldNames(s); got != tt.held {
				t.Fatalf("held: %q, want %q", got, tt.held)
			}
		})
	}
}

func TestBarrier(t *testing.T) {
	s := served(t, 5, io.Discard)
	c := dial(t, s)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.send("FDSTORE=1\nFDNAME=a", memory(t))
	c.send("BARRIER=1", int(w.Fd()))
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Fatalf("before the message is handled: %v", err)
	}
	s.drain()
	if err := r.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF || heldNames(s) != "a" {
		t.Fatalf("after it: %v, held %q", err, heldNames(s))
	}
}

// Strangers are not obeyed, and their descriptors are never opened here, however many they send.
func TestStrangers(t *testing.T) {
	var log bytes.Buffer
	s := served(t, 5, &log)
	c := dial(t, s)
	own := memory(t)
	c.send("FDSTORE=1\nFDNAME=a", own)
	s.drain()
	s.child = 1 // from now on we are a stranger
	many := make([]int, maxRights)
	for i := range many {
		many[i] = own
	}
	before := openFiles(t)
	var most int
	for range 1000 {
		c.send("FDSTORE=1\nFDNAME=b", many...)
		c.send("FDSTOREREMOVE=1\nFDNAME=a")
		c.send("BARRIER=1", own)
		s.drain()
		most = max(most, openFiles(t)-before)
	}
	if most != 0 || heldNames(s) != "a" {
		t.Fatalf("%d files were opened, held %q", most, heldNames(s))
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Fatalf("%d lines of log:\n%s", n, log.String())
	}
}

// A flood of descriptors from micad itself ends where there is no more room.
func TestFlood(t *testing.T) {
	s := served(t, 300, io.Discard)
	c := dial(t, s)
	before := openFiles(t)
	for i := range 20 {
		fds := make([]int, maxRights)
		for j := range fds {
			fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			fds[j] = fd
		}
		c.send(fmt.Sprintf("FDSTORE=1\nFDNAME=%d", i), fds...)
		for _, fd := range fds {
			unix.Close(fd)
		}
		s.drain()
	}
	if got := openFiles(t) - before; got != 300 || s.held() != 300 {
		t.Fatalf("%d files more are open, %d held", got, s.held())
	}
}

// No environment becomes too long for a process.
func TestLengthOfNames(t *testing.T) {
	s := served(t, 1<<14, io.Discard)
	c := dial(t, s)
	for i := range 600 {
		c.send(fmt.Sprintf("FDSTORE=1\nFDNAME=%0255d", i), memory(t))
		s.drain()
	}
	names := heldNames(s)
	if n := len(names); n < 100<<10 || n > 120<<10 {
		t.Fatalf("%d bytes of names", n)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^$")
	cmd.Env = []string{"LISTEN_FDNAMES=" + names}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for i := range 600 {
		c.send(fmt.Sprintf("FDSTOREREMOVE=1\nFDNAME=%0255d", i))
		s.drain()
	}
	if s.store.names != 0 || s.held() != 0 {
		t.Fatalf("%d bytes of names of %d descriptors are left", s.store.names, s.held())
	}
}

// The socket is in nobody's way and out of everybody's reach but those who may trace the
// supervisor.
func TestSocketHasNoName(t *testing.T) {
	s := served(t, 5, io.Discard)
	if name := s.conn.LocalAddr().(*net.UnixAddr).Name; strings.HasPrefix(name, "@") {
		t.Fatalf("%s is in the reach of all who share the network", name)
	} else if _, err := os.Lstat(name); !os.IsNotExist(err) {
		t.Fatalf("%s: %v", name, err)
	}
	nobody := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls",
		s.addr)
	if out, err := nobody.CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "ermission denied") {
		t.Fatalf("somebody else: %v, %s", err, out)
	}
}

// FuzzNotification checks what a message is taken for, and that handling it leaves nothing open.
func FuzzNotification(f *testing.F) {
	f.Add([]byte("FDSTORE=1\nFDPOLL=0\nFDNAME=device-0123.0.2"), uint8(1))
	f.Add([]byte("FDSTOREREMOVE=1\nFDNAME=stored"), uint8(0))
	f.Add([]byte("READY=1\nSTATUS=serves\n"), uint8(3))
	f.Add([]byte("BARRIER=1"), uint8(1))
	f.Add([]byte("BARRIER=1\nFDSTORE=1"), uint8(2))
	s, err := listen(newStore(8), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.close)
	f.Fuzz(func(t *testing.T, msg []byte, files uint8) {
		n, err := parseNotification(msg)
		if err == nil && (n.store || n.remove) &&
			(!validName(n.name) || strings.ContainsAny(n.name, ":\n\x00")) {
			t.Fatalf("name %q", n.name)
		}
		if n.store && n.remove || n.barrier && (n.store || n.remove || n.ready) {
			t.Fatalf("%+v", n)
		}
		s.store.clear()
		var fds []int
		for range files % 16 {
			fds = append(fds, memory(t))
		}
		s.child = os.Getpid()
		if len(msg) > 1<<16 {
			return
		}
		c := dial(t, s)
		before := openFiles(t)
		c.send(string(msg), fds...)
		s.drain()
		held := s.held()
		if open := openFiles(t) - before; open != held {
			t.Fatalf("%d files are open, %d held", open, held)
		}
		if n.store && err == nil && len(msg) <= maxMessage && held != min(len(fds), 8) ||
			!n.store && held != 0 {
			t.Fatalf("%d of %d descriptors are held", held, len(fds))
		}
	})
}
