package fs

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/fs/fetch"
)

// TestReadDeadline: a read of what the registry does not bring has its error when read_deadline is
// over, however often the kernel asks again for it.
func TestReadDeadline(t *testing.T) {
	const deadline = 6 * time.Second
	for _, mode := range []Mode{EROFS, FUSE} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(nil)
			table := w.openWith(Options{
				Root: testDir(t), Mode: mode, ReadDeadline: deadline,
				Fetch: fetch.Options{Fill: fetch.None},
			})
			m, err := table.Mount(t.Context(), w.layer(0), nil)
			if err != nil {
				t.Fatal(err)
			}
			w.broken.Store(true)
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), readEnv+"="+m.Dir)
			start := time.Now()
			out, err := cmd.CombinedOutput()
			took := time.Since(start)
			if err == nil || !strings.Contains(string(out), "input/output error") {
				t.Errorf("read: %v, %s", err, out)
			}
			if took < deadline || took > deadline+4*time.Second {
				t.Errorf("the error came after %v", took)
			}
		})
	}
}
