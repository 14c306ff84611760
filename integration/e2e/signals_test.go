package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// mapped digests a file through page faults, one page at a time, under a timer of so many
// microseconds.
const mapped = `import hashlib, mmap, signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, %[1]d / 1e6, %[1]d / 1e6)
f = open("%[2]s", "rb")
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
m.madvise(mmap.MADV_RANDOM)
print(hashlib.sha256(m).hexdigest(), "", "-")`

// A program with a timer that maps a file gets it from a slow registry as one without, by about as
// many requests.
func TestTimers(t *testing.T) {
	r, ref, _ := debian(t, true)
	const file = "/usr/bin/perl"
	var undisturbed int
	for _, us := range []int{0, 1_000, 10_000} {
		t.Run(fmt.Sprint(us, " µs"), func(t *testing.T) {
			n := fixture.Node(t, node.Options{Mode: "fuse", DemandOnly: true})
			fixture.Pull(t, n, mica, ref)
			// What the program itself is made of is here.
			fixture.Run(t, n, mica, ref, "first", "python3", "-c", fmt.Sprintf(mapped, us, "/etc/passwd"))
			r.SetProfile(shaper.Profile{RTT: 5 * time.Millisecond, Rate: 1e6})
			defer r.SetProfile(shaper.Profile{})
			r.ResetTraffic()
			start := time.Now()
			got := fixture.Run(t, n, mica, ref, "mapped", "python3", "-c", fmt.Sprintf(mapped, us, file))
			took, traffic := time.Since(start), r.Traffic()
			t.Logf("%s, %d requests, %d bytes", took, len(traffic.Requests), traffic.BlobBytes())
			if us == 0 {
				undisturbed = len(traffic.Requests)
			}
			if len(traffic.Requests) > 2*undisturbed+10 {
				t.Errorf("%d requests, %d without a timer", len(traffic.Requests), undisturbed)
			}
			want := fixture.Run(t, n, mica, ref, "again", "sh", "-c", "sha256sum <"+file)
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}
