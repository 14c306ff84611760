package store

import (
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
)

// mustUse checks that the store counts what du does.
func mustUse(t *testing.T, st *Store, when string) int64 {
	t.Helper()
	var want int64
	all, err := st.Layers()
	must(t, err)
	for _, d := range all {
		n, err := diskUsage(st.layerDir(d))
		must(t, err)
		want += n
	}
	coming, err := os.ReadDir(st.dir + "/" + tmpName)
	must(t, err)
	for _, e := range coming {
		n, err := diskUsage(st.dir + "/" + tmpName + "/" + e.Name())
		must(t, err)
		want += n
	}
	if got := st.Used(); got != want {
		t.Errorf("%s: %d bytes are counted, du says %d", when, got, want)
	}
	return want
}

// TestUsed: what the store counts follows all that comes to the disk and goes from it.
func TestUsed(t *testing.T) {
	dir := t.TempDir()
	st := open(t, dir)
	lazy, whole, other := newLargeSample(41, 30), newLargeSample(42, 10), newLargeSample(43, 10)
	whole.name, other.name = digest.FromString("whole"), digest.FromString("other")
	l := lazy.mustCreate(t, st, Lazy)
	lazy.write(t, l, lazy.all()[:20]...)
	lazy.write(t, l, 3, 4, 5) // once more, as two readers do at the same time
	must(t, st.Flush())
	mustUse(t, st, "some spans")
	w := whole.mustCreate(t, st, Verified)
	must(t, st.Flush())
	full := mustUse(t, st, "a whole layer")
	_, err := l.Evict([]int{0, 1, 2, 17})
	must(t, err)
	mustUse(t, st, "spans evicted")
	must(t, w.Empty())
	if n := mustUse(t, st, "a layer emptied"); n > full-int64(len(whole.device)) {
		t.Errorf("%d bytes are left of %d", n, full)
	}

	must(t, l.Close())
	must(t, w.Close())
	must(t, st.Close())
	st = open(t, dir)
	mustUse(t, st, "the next run")
	must(t, os.WriteFile(st.layerDir(whole.name)+"/"+recordName, []byte("{"), 0o600))

	in, err := st.Create(other.name)
	must(t, err)
	_, err = in.Device().Write(other.device[:spoolBuffer])
	must(t, err)
	if n := st.Used(); n < full-int64(len(whole.device))-int64(len(lazy.device)) {
		t.Errorf("%d bytes with a layer on its way", n)
	}
	must(t, in.Abort())
	mustUse(t, st, "a layer given up")

	// A layer that is removed may be in use, and what is written to it is nobody's.
	l = lazy.layer(t, st)
	lazy.write(t, l, 25)
	must(t, st.Remove(lazy.name))
	again := lazy.mustCreate(t, st, Lazy)
	lazy.write(t, again, 7)
	must(t, st.Flush())
	lazy.write(t, l, 0, 1)
	must(t, l.Close())
	mustUse(t, st, "a layer removed and brought again")
	must(t, again.Close())
	for _, s := range []*sample{lazy, whole, other} {
		must(t, st.Remove(s.name))
	}
	if n := mustUse(t, st, "all removed"); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
	must(t, st.Close())
}
