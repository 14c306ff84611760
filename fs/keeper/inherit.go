package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	firstFD = 3       // SD_LISTEN_FDS_START
	maxFDs  = 1 << 16 // more than that in $LISTEN_FDS is a mistake
)

// environment is what the keeper tells by environment variables.
type environment struct {
	addr  *net.UnixAddr // nil: no keeper
	max   int           // how many descriptors it keeps
	names []string      // of the descriptors from firstFD on; "" where it has none
}

// variables are those that this package reads, and takes out of the environment so that no child
// takes them for its own. LISTEN_PIDFDID goes with LISTEN_PID (systemd 258).
var variables = []string{"NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS",
	"LISTEN_FDNAMES"}

// CleanEnviron is environ without the variables of the protocol.
func CleanEnviron(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(variables, name)
	})
}

// Inherit finds the keeper of this process and takes over what it kept, from the environment, which
// is cleared of it. Call it once, early: until then children inherit the descriptors. The keeper is
// nil if there is none, and the result is good to use beside an error, which tells what of the
// environment was wrong or what was dropped. Sets that are not whole and descriptors that this
// package did not store are closed and dropped.
func Inherit() (*Keeper, []Held, error) {
	env, err := parseEnvironment(os.Getenv, os.Getpid())
	for _, v := range variables {
		os.Unsetenv(v)
	}
	files, errOpen := openFDs(env.names)
	held, left := group(files)
	var dropped []string
	for _, f := range left {
		dropped = append(dropped, f.Name())
		f.Close()
	}
	err = errors.Join(err, errOpen)
	if len(dropped) > 0 {
		err = errors.Join(err,
			fmt.Errorf("inherited descriptors that belong to nothing are dropped: %s",
				strings.Join(dropped, " ")))
	}
	if env.addr == nil {
		return nil, held, err
	}
	k := &Keeper{addr: env.addr, max: env.max, stored: make(map[string]int)}
	for _, h := range held {
		k.addLocked(h.Name, len(h.Files))
	}
	for _, name := range dropped {
		if base, _, n, ok := parseWireName(name); ok && k.stored[base] == n {
			continue // a second file under a name that is in use: removing it would remove both
		}
		if !validFDName(name) {
			continue
		}
		err = errors.Join(err, k.tell("FDSTOREREMOVE=1\nFDNAME="+name))
	}
	return k, held, err
}

// parseEnvironment reads the variables by get, for the process pid. The result holds what is right
// beside an error.
func parseEnvironment(get func(string) string, pid int) (environment, error) {
	var env environment
	var errs []error
	fail := func(name, why string) {
		errs = append(errs, fmt.Errorf("$%s=%q: %s", name, get(name), why))
	}
	switch s := get("NOTIFY_SOCKET"); {
	case s == "":
	case len(s) < 2 || s[0] != '/' && s[0] != '@' || len(s) > 107 || strings.IndexByte(s, 0) >= 0:
		fail("NOTIFY_SOCKET", "not the address of a UNIX socket")
	default:
		// package net takes '@' for an abstract one too
		env.addr = &net.UnixAddr{Name: s, Net: "unixgram"}
	}
	if s := get("FDSTORE"); s != "" && env.addr != nil {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			fail("FDSTORE", "not a number of descriptors")
		}
		env.max = min(int(n), maxFDs)
	}
	if s := get("LISTEN_PID"); s == "" || s != strconv.Itoa(pid) {
		return env, errors.Join(errs...) // what follows is for somebody else
	}
	n, err := strconv.ParseUint(get("LISTEN_FDS"), 10, 31)
	if err != nil || n > maxFDs {
		fail("LISTEN_FDS", "not a number of descriptors")
		return env, errors.Join(errs...)
	}
	env.names = make([]string, n)
	if s := get("LISTEN_FDNAMES"); s != "" {
		if strings.Count(s, ":") == int(n)-1 {
			env.names = strings.Split(s, ":")
		} else {
			fail("LISTEN_FDNAMES", fmt.Sprintf("not the names of %d descriptors", n))
		}
	}
	return env, errors.Join(errs...)
}

// openFDs makes files of the descriptors from firstFD on, closed on exec.
func openFDs(names []string) ([]*os.File, error) {
	var files []*os.File
	for i, name := range names {
		fd := firstFD + i
		if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFD,
			syscall.FD_CLOEXEC); errno != 0 {
			return files, fmt.Errorf("inherited descriptor %d (%s): %w", fd, name, errno)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files, nil
}

// validFDName tells whether the protocol allows the name: up to 255 printable ASCII characters but
// colons.
func validFDName(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f || s[i] == ':' {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// group brings the files that were stored under one name together, in order of their names' first
// appearance, and returns those that belong to no whole set apart.
func group(files []*os.File) (held []Held, left []*os.File) {
	type key struct {
		name string
		n    int
	}
	sets := make(map[key][]*os.File)
	var order []key
	for _, f := range files {
		name, i, n, ok := parseWireName(f.Name())
		if !ok {
			left = append(left, f)
			continue
		}
		k := key{name, n}
		if sets[k] == nil {
			sets[k] = make([]*os.File, n)
			order = append(order, k)
		}
		if sets[k][i] != nil {
			left = append(left, f)
			continue
		}
		sets[k][i] = f
	}
	taken := make(map[string]bool)
	for _, k := range order {
		whole := !taken[k.name]
		for _, f := range sets[k] {
			whole = whole && f != nil
		}
		if whole {
			taken[k.name] = true
			held = append(held, Held{Name: k.name, Files: sets[k]})
			continue
		}
		for _, f := range sets[k] {
			if f != nil {
				left = append(left, f)
			}
		}
	}
	return held, left
}
