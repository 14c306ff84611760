package supervisor

import (
	"bytes"
	"errors"
	"strings"
)

// defaultName is what a descriptor without FDNAME= is called: sd_pid_notify_with_fds(3).
const defaultName = "stored"

// maxName is the longest name: FDNAME_MAX of systemd.
const maxName = 255

// notification is what a datagram asks for. At most one of store, remove and barrier is set.
type notification struct {
	store, remove, barrier bool
	name                   string // of what is stored or removed
	ready                  bool
	status                 string
}

// parseNotification reads lines of NAME=VALUE. Those that are unknown are skipped, as the protocol
// wants it; of a name that comes twice the first counts.
func parseNotification(b []byte) (notification, error) {
	var n notification
	b = bytes.TrimRight(b, "\x00")
	if bytes.IndexByte(b, 0) >= 0 {
		return n, errors.New("a zero byte in the middle")
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	values := make(map[string]string, len(lines))
	for _, line := range lines {
		name, value, ok := strings.Cut(line, "=")
		if _, seen := values[name]; ok && !seen {
			values[name] = value
		}
	}
	if values["BARRIER"] == "1" {
		if len(lines) != 1 {
			return n, errors.New("a barrier with something else")
		}
		n.barrier = true
		return n, nil
	}
	n.ready = values["READY"] == "1"
	n.status = values["STATUS"]
	n.name = values["FDNAME"]
	n.remove = values["FDSTOREREMOVE"] == "1"
	n.store = values["FDSTORE"] == "1" && !n.remove
	if n.remove && !validName(n.name) {
		return notification{}, errors.New("FDSTOREREMOVE without a valid FDNAME")
	}
	if n.store && !validName(n.name) {
		n.name = defaultName
	}
	return n, nil
}

// validName tells whether the name may be passed on: printable ASCII without colons, which separate
// names in $LISTEN_FDNAMES.
func validName(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f || s[i] == ':' {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}
