package main

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestListenIsRoots: nobody but root can connect, whatever the umask; an abandoned socket is replaced, one in use is not.
func TestListenIsRoots(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "run", "micad.sock")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the socket has mode %v and owner %d", st.Mode(), st.Sys().(*syscall.Stat_t).Uid)
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || st.Mode().Perm()&0o022 != 0 {
		t.Errorf("the socket's folder can be written by others: %v, %v", st.Mode(), err)
	}
	if got := syscall.Umask(0); got != 0 {
		t.Errorf("the umask is left at %#o", got)
	}
	if again, err := listen(path); err == nil {
		again.Close()
		t.Error("a socket in use was replaced")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = listen(path); err != nil {
		t.Fatalf("a socket that nobody listens on: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
