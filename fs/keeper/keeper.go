// Package keeper holds a daemon's file descriptors over its death.
//
// A descriptor that the daemon stores is duplicated in another process, the keeper: systemd's file
// descriptor store where micad runs as a unit, else `micad keep`. Both speak the protocol of
// sd_notify(3): datagrams of NAME=VALUE lines to the socket named by $NOTIFY_SOCKET, descriptors
// beside them (SCM_RIGHTS). When the daemon has died, the keeper starts it anew with the
// descriptors from number 3 on, described by $LISTEN_FDS and $LISTEN_FDNAMES (sd_listen_fds(3)).
//
//	daemon ── Store: FDSTORE=1 + descriptor, then BARRIER=1 ──▶ keeper
//	keeper ── next start: LISTEN_FDS, LISTEN_FDNAMES ──▶ Inherit ──▶ []Held
//
// The protocol knows neither order (systemd hands out the newest first) nor that descriptors belong
// together, so each file goes by a name of its own, NAME.I.N: file I of N of what the daemon calls
// NAME. A set that the keeper has only a part of, because the daemon died while it stored it, is
// not handed out but dropped.
//
// All methods may be called in parallel. None of them starts a goroutine that outlives the call.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxFiles is how many files may be stored under one name: as many as one set of wire names is
// allowed to count.
const maxFiles = 99

// MaxNames bounds the length of $LISTEN_FDNAMES: the kernel starts no process with a variable over
// 128 KiB (MAX_ARG_STRLEN, linux/binfmts.h), and a daemon that cannot be started is the worst that
// can happen to what it serves.
const MaxNames = 120 << 10

// sendTimeout bounds the messages whose callers have no context; a keeper that lives takes them at
// once.
const sendTimeout = 5 * time.Second

var (
	// ErrFull is the error of Store when the keeper has no room for the files.
	ErrFull = errors.New("the keeper of descriptors is full")
	// ErrStored is the error of Store for a name that is in use.
	ErrStored = errors.New("a file is stored under this name")
)

var validName = regexp.MustCompile(`^[a-z0-9-]{1,200}$`)

// Keeper is the process that keeps descriptors for this one. The nil Keeper is valid: nothing
// keeps, its methods do nothing and return nil.
type Keeper struct {
	addr *net.UnixAddr
	max  int // how many descriptors it keeps

	mu     sync.Mutex
	stored map[string]int // files by name
	files  int            // their sum
	length int            // of all wire names, with colons
}

// Held is what was stored under one name: its files, in the order in which Store was given them.
type Held struct {
	Name  string
	Files []*os.File
}

// Keeps tells whether descriptors that are stored outlive this process.
func (k *Keeper) Keeps() bool { return k != nil && k.max > 0 }

// Store gives the keeper duplicates of files, to be handed out by the next process's Inherit under
// name, [a-z0-9-]{1,200}. It returns when the keeper has them. All of them are kept or, after an
// error, none. A name is stored once (ErrStored) until it is dropped; so is an open file, under
// whatever name: systemd ignores a second one silently. Where nothing keeps it does nothing.
func (k *Keeper) Store(ctx context.Context, name string, files ...*os.File) error {
	if !k.Keeps() {
		return nil
	}
	if err := k.reserve(name, len(files)); err != nil {
		return fmt.Errorf("store descriptors of %s: %w", name, err)
	}
	err := k.exchange(ctx, func(c *net.UnixConn) error {
		for i, f := range files {
			state := "FDSTORE=1\nFDPOLL=0\nFDNAME=" + wireName(name, i, len(files))
			if err := send(c, state, f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		// What arrived of them must not be mistaken for a whole set, nor take room.
		err = errors.Join(err, k.tell(removal(name, len(files))...))
		k.forget(name)
		return fmt.Errorf("store descriptors of %s: %w", name, err)
	}
	return nil
}

// Drop makes the keeper close what was stored under name and returns when it has. A name that is
// not stored is no error.
func (k *Keeper) Drop(ctx context.Context, name string) error {
	if !k.Keeps() {
		return nil
	}
	n := k.forget(name)
	if n == 0 {
		return nil
	}
	err := k.exchange(ctx, func(c *net.UnixConn) error {
		for _, state := range removal(name, n) {
			if err := send(c, state); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop descriptors of %s: %w", name, err)
	}
	return nil
}

// Ready tells that start-up is complete, with a line about it.
func (k *Keeper) Ready(status string) error { return k.tell("READY=1\nSTATUS=" + line(status)) }

// Stopping tells that the daemon is about to end.
func (k *Keeper) Stopping() error { return k.tell("STOPPING=1") }

// reserve takes name and room for n files.
func (k *Keeper) reserve(name string, n int) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q does not match %s", name, validName)
	}
	if n < 1 || n > maxFiles {
		return fmt.Errorf("%d files: 1 to %d go under one name", n, maxFiles)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stored[name] > 0 {
		return ErrStored
	}
	// The keeper tells nobody that it is full, but how much it takes is known.
	if k.files+n > k.max {
		return fmt.Errorf("%w (%d of %d are in use)", ErrFull, k.files, k.max)
	}
	if k.length+wireLength(name, n) > MaxNames {
		return fmt.Errorf("%w (the names of %d files have %d of %d bytes)", ErrFull, k.files,
			k.length, MaxNames)
	}
	k.addLocked(name, n)
	return nil
}

func (k *Keeper) addLocked(name string, n int) {
	if k.stored == nil {
		k.stored = make(map[string]int)
	}
	k.stored[name] = n
	k.files += n
	k.length += wireLength(name, n)
}

// forget gives name up and returns how many files it stood for.
func (k *Keeper) forget(name string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.stored[name]
	delete(k.stored, name)
	k.files -= n
	k.length -= wireLength(name, n)
	return n
}

// wireName is what the keeper calls file i of n. No name has a dot, so it can be taken apart again.
func wireName(name string, i, n int) string { return fmt.Sprintf("%s.%d.%d", name, i, n) }

// wireLength is what the n files of name take of $LISTEN_FDNAMES.
func wireLength(name string, n int) int {
	sum := 0
	for i := range n {
		sum += len(wireName(name, i, n)) + len(":")
	}
	return sum
}

// parseWireName is the inverse of wireName.
func parseWireName(s string) (name string, i, n int, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || !validName.MatchString(parts[0]) {
		return "", 0, 0, false
	}
	i, err := strconv.Atoi(parts[1])
	if err != nil {
		return "", 0, 0, false
	}
	n, err = strconv.Atoi(parts[2])
	if err != nil || i < 0 || n > maxFiles || i >= n || wireName(parts[0], i, n) != s {
		return "", 0, 0, false
	}
	return parts[0], i, n, true
}

// removal is the messages that drop the n files of name.
func removal(name string, n int) []string {
	states := make([]string, n)
	for i := range states {
		states[i] = "FDSTOREREMOVE=1\nFDNAME=" + wireName(name, i, n)
	}
	return states
}

// line makes one line of moderate length of status: the protocol separates by newlines, and systemd
// ignores messages over 4096 bytes.
func line(status string) string {
	status = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, status)
	return strings.ToValidUTF8(status[:min(len(status), 1024)], "")
}
