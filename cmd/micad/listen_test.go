package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/mica-snapshotter/mica/fs/keeper"
)

// held is what a keeper would hand out of a listener.
func held(t *testing.T, l net.Listener) *keeper.Held {
	t.Helper()
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	f, err := u.File()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return &keeper.Held{Name: listenerName, Files: []*os.File{f}}
}

func connect(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Who connects while no micad is there is answered by the next one.
func TestListenerIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := takeListener(t.Context(), nil, nil, listenerName, path)
	if err != nil {
		t.Fatal(err)
	}
	h := held(t, l)
	early := connect(t, path)
	if l, err = takeListener(t.Context(), nil, h, listenerName, path); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := early.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// A socket whose file is gone, or another's, or of another address, is replaced.
func TestListenerIsReplaced(t *testing.T) {
	for name, change := range map[string]func(path string) string{
		"gone": func(path string) string { return path },
		"file": func(path string) string {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		},
		"elsewhere": func(path string) string { return path + "2" },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := listen(path)
			if err != nil {
				t.Fatal(err)
			}
			h := held(t, l)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			path = change(path)
			if l, err = takeListener(t.Context(), nil, h, listenerName, path); err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			connect(t, path)
			if _, err := l.Accept(); err != nil {
				t.Error(err)
			}
		})
	}
}
