package keeper

import (
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// env is an environment of NAME=VALUE.
func env(vars ...string) func(string) string {
	return func(name string) string {
		for _, v := range vars {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

func TestParseEnvironment(t *testing.T) {
	const pid = 42
	for _, tt := range []struct {
		name  string
		env   []string
		addr  string
		max   int
		names []string
		err   string // part of the error
	}{
		{name: "no keeper"},
		{name: "systemd", env: []string{"NOTIFY_SOCKET=/run/systemd/notify", "FDSTORE=512"},
			addr: "/run/systemd/notify", max: 512},
		{name: "a socket without a file", env: []string{"NOTIFY_SOCKET=@x"}, addr: "@x"},
		{name: "a store without a socket", env: []string{"FDSTORE=512"}},
		{name: "descriptors",
			env: []string{"NOTIFY_SOCKET=@x", "LISTEN_PID=42", "LISTEN_FDS=2",
				"LISTEN_FDNAMES=a:b"}, addr: "@x", names: []string{"a", "b"}},
		{name: "descriptors without names", env: []string{"LISTEN_PID=42", "LISTEN_FDS=2"},
			names: []string{"", ""}},
		{name: "an empty name",
			env: []string{"LISTEN_PID=42", "LISTEN_FDS=3",
				"LISTEN_FDNAMES=a::b"}, names: []string{"a", "", "b"}},
		{name: "another process's",
			env: []string{"LISTEN_PID=43", "LISTEN_FDS=2", "LISTEN_FDNAMES=a:b"}},
		{name: "no process's", env: []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=a:b"}},
		{name: "too few names", env: []string{"LISTEN_PID=42", "LISTEN_FDS=2", "LISTEN_FDNAMES=a"},
			names: []string{"", ""}, err: "LISTEN_FDNAMES"},
		{name: "too many names",
			env: []string{"LISTEN_PID=42", "LISTEN_FDS=1",
				"LISTEN_FDNAMES=a:b"}, names: []string{""}, err: "LISTEN_FDNAMES"},
		{name: "names of nothing",
			env: []string{"LISTEN_PID=42", "LISTEN_FDS=0",
				"LISTEN_FDNAMES=a"}, names: []string{}, err: "LISTEN_FDNAMES"},
		{name: "a negative number", env: []string{"LISTEN_PID=42", "LISTEN_FDS=-1"},
			err: "LISTEN_FDS"},
		{name: "a number beyond reason", env: []string{"LISTEN_PID=42", "LISTEN_FDS=2000000000"},
			err: "LISTEN_FDS"},
		{name: "no number", env: []string{"LISTEN_PID=42"}, err: "LISTEN_FDS"},
		{name: "a relative socket", env: []string{"NOTIFY_SOCKET=x"}, err: "NOTIFY_SOCKET"},
		{name: "vsock", env: []string{"NOTIFY_SOCKET=vsock:2:1"}, err: "NOTIFY_SOCKET"},
		{name: "a long socket", env: []string{"NOTIFY_SOCKET=/" + strings.Repeat("x", 107)},
			err: "NOTIFY_SOCKET"},
		{name: "a store of no size", env: []string{"NOTIFY_SOCKET=@x", "FDSTORE=many"}, addr: "@x",
			err: "FDSTORE"},
		{name: "a store beyond reason", env: []string{"NOTIFY_SOCKET=@x", "FDSTORE=2000000000"},
			addr: "@x", max: maxFDs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseEnvironment(env(tt.env...), pid)
			if tt.err == "" != (err == nil) || err != nil &&
				!strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want one with %q", err, tt.err)
			}
			addr := ""
			if got.addr != nil {
				addr = got.addr.Name
			}
			if addr != tt.addr || got.max != tt.max || !reflect.DeepEqual(got.names, tt.names) {
				t.Fatalf("got %q, %d, %q; want %q, %d, %q", addr, got.max, got.names, tt.addr,
					tt.max, tt.names)
			}
		})
	}
}

func TestGroup(t *testing.T) {
	for _, tt := range []struct {
		name, in   string // wire names, in the order in which the keeper hands them out
		held, left string
	}{
		{name: "none"},
		{name: "in order", in: "a.0.2 a.1.2 b.0.1", held: "a[a.0.2 a.1.2] b[b.0.1]"},
		{name: "newest first", in: "b.0.1 a.1.2 a.0.2", held: "b[b.0.1] a[a.0.2 a.1.2]"},
		{name: "mixed", in: "a.1.2 b.0.1 a.0.2", held: "a[a.0.2 a.1.2] b[b.0.1]"},
		{name: "not whole", in: "a.1.2 b.0.1", held: "b[b.0.1]", left: "a.1.2"},
		{name: "one twice", in: "a.0.2 a.0.2 a.1.2", held: "a[a.0.2 a.1.2]", left: "a.0.2"},
		{name: "two sizes", in: "a.0.1 a.0.2 a.1.2", held: "a[a.0.1]", left: "a.0.2 a.1.2"},
		{name: "another's", in: "stored micad.socket a.0.1 a.1.1 a.00.1 A.0.1 .0.1 a.0.100 a.0.1.1",
			held: "a[a.0.1]",
			left: "stored micad.socket a.1.1 a.00.1 A.0.1 .0.1 a.0.100 a.0.1.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var files []*os.File
			for _, name := range strings.Fields(tt.in) {
				files = append(files, os.NewFile(1<<20, name)) // never used nor closed
			}
			held, left := group(files)
			var h []string
			for _, x := range held {
				h = append(h, x.Name+"["+strings.Join(names(x.Files), " ")+"]")
			}
			if got := strings.Join(h, " "); got != tt.held {
				t.Errorf("held %s, want %s", got, tt.held)
			}
			if got := strings.Join(names(left), " "); got != tt.left {
				t.Errorf("left %s, want %s", got, tt.left)
			}
		})
	}
}

func names(files []*os.File) []string {
	var list []string
	for _, f := range files {
		list = append(list, f.Name())
	}
	return list
}

// FuzzEnvironment checks that no environment makes more of the descriptors than it says.
func FuzzEnvironment(f *testing.F) {
	f.Add("/run/systemd/notify", "512", "42", "2", "a.0.2:a.1.2")
	f.Add("@x", "", "42", "65536", "")
	f.Fuzz(func(t *testing.T, socket, store, pid, fds, fdnames string) {
		got, err := parseEnvironment(env("NOTIFY_SOCKET="+socket, "FDSTORE="+store,
			"LISTEN_PID="+pid, "LISTEN_FDS="+fds, "LISTEN_FDNAMES="+fdnames), 42)
		if len(got.names) > maxFDs || got.max < 0 || got.max > maxFDs {
			t.Fatalf("%d descriptors, room for %d", len(got.names), got.max)
		}
		if n, _ := strconv.Atoi(fds); err == nil && pid == "42" && len(got.names) != n {
			t.Fatalf("%d descriptors of %s", len(got.names), fds)
		}
		if len(got.names) > 64 {
			return
		}
		var files []*os.File
		for _, name := range got.names {
			files = append(files, os.NewFile(1<<20, name))
		}
		held, left := group(files)
		n := len(left)
		for _, h := range held {
			n += len(h.Files)
			for i, file := range h.Files {
				if file.Name() != wireName(h.Name, i, len(h.Files)) {
					t.Fatalf("file %d of %s is %s", i, h.Name, file.Name())
				}
			}
		}
		if n != len(files) {
			t.Fatalf("%d of %d descriptors are accounted for", n, len(files))
		}
	})
}
