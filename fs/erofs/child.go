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

// A process must touch nothing that it serves itself over FUSE: if it were killed while it waits
// for its own answer, it would never end. So this program runs itself as a child, by these
// arguments.
const (
	readVerb  = "mica-probe-read"
	mountVerb = "mica-mount"
)

// childGrace is how long a killed child may take to let go of its pipes.
const childGrace = 5 * time.Second

// RunChild does the work of a child of Probe or of a Mounter, if that is what args (without the
// program's name) ask for, with in and out as standard input and output. A main function calls it
// before all else, and exits if ran is true.
func RunChild(args []string, in io.Reader, out io.Writer) (ran bool, err error) {
	switch {
	case len(args) == 2 && args[0] == readVerb:
		b, err := os.ReadFile(args[1])
		if err != nil {
			return true, err
		}
		_, err = out.Write(b)
		return true, err
	case len(args) == 1 && args[0] == mountVerb:
		return true, runMounts(in, out)
	}
	return false, nil
}

// readInChild reads a file by a child process.
func readInChild(ctx context.Context, path string) ([]byte, error) {
	var msg bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", readVerb, path)
	cmd.Stderr = &msg
	cmd.WaitDelay = childGrace
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(msg.String()))
	}
	return b, nil
}
