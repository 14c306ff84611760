package erofs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// childVerb is the argument that makes this program the child of a probe.
const childVerb = "mica-probe-read"

// childGrace is how long a killed child may take to let go of its pipes.
const childGrace = 5 * time.Second

// RunChild does the work of a probe's child, if that is what args (without the
// program's name) ask for: it writes the named file to w. A main function
// calls it before all else, and exits if ran is true.
//
// A process must not read what it serves itself over FUSE: if it were killed while
// it waits for its own answer, it would never end.
func RunChild(args []string, w io.Writer) (ran bool, err error) {
	if len(args) != 2 || args[0] != childVerb {
		return false, nil
	}
	b, err := os.ReadFile(args[1])
	if err != nil {
		return true, err
	}
	_, err = w.Write(b)
	return true, err
}

// readInChild reads a file by a child process.
func readInChild(ctx context.Context, path string) ([]byte, error) {
	var msg bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", childVerb, path)
	cmd.Stderr = &msg
	cmd.WaitDelay = childGrace
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(msg.String()))
	}
	return b, nil
}
