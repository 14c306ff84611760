// Package reach is how commands reach what they speak with: images, at a registry or in an OCI
// layout, and micad.
package reach

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
)

// SocketPath returns the path of a socket that may be written as a URL.
func SocketPath(address string) string { return strings.TrimPrefix(address, "unix://") }

// AddAddress adds the flag that names micad's socket.
func AddAddress(cmd *cobra.Command, address *string) {
	cmd.Flags().StringVar(address, "address",
		cmp.Or(SocketPath(os.Getenv("MICA_ADDRESS")), admin.DefaultAddress),
		"micad's socket ($MICA_ADDRESS)")
}

// Daemon returns a client of the micad behind a socket.
func Daemon(address string) *admin.Client {
	c := admin.NewClient(SocketPath(address))
	c.Notice = (&Notices{}).Tell
	return c
}

// Notices tells what is waited for, a thing once.
type Notices struct {
	W io.Writer // nil: os.Stderr

	mu   sync.Mutex
	last string
}

// Tell writes a line, unless it is the one before again.
func (n *Notices) Tell(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if line != n.last {
		n.last = line
		w := n.W
		if w == nil {
			w = os.Stderr
		}
		fmt.Fprintln(w, "mica:", line)
	}
}
