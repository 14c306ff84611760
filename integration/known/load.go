package known

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what readers saw until now.
type Report struct {
	Reads   int64
	Failed  int64         // reads that ended with an error, or short
	Wrong   int64         // reads that brought bytes that are not the file's
	Cold    int           // files that were read at least once
	Longest time.Duration // of one open, read and close, of those under way too
	Bytes   int64
	Passed  bool     // the whole tree was read
	Trouble []string // some of what failed or was wrong
}

// Add sums the reports of two groups of readers.
func (r Report) Add(o Report) Report {
	r.Reads, r.Failed, r.Wrong, r.Cold, r.Bytes = r.Reads+o.Reads, r.Failed+o.Failed, r.Wrong+o.Wrong, r.Cold+o.Cold, r.Bytes+o.Bytes
	r.Longest = max(r.Longest, o.Longest)
	r.Passed = r.Passed && o.Passed
	r.Trouble = append(r.Trouble[:len(r.Trouble):len(r.Trouble)], o.Trouble...)
	return r
}

// Options says how readers read.
type Options struct {
	Readers int           // at a time; at least 1
	Step    time.Duration // a file that was not read before is read once in this time; the other reads are of files that were
	Pause   time.Duration // of each reader between two reads, on average
}

// Load is a group of readers of a tree. Make one with New; its methods may be called in parallel.
type Load struct {
	tree Tree
	dir  string
	opts Options

	reads, failed, wrong, longest, bytes atomic.Int64
	passed                               atomic.Bool

	mu      sync.Mutex
	order   []int     // of first reads
	cold    int       // files of order that were read
	next    time.Time // of the next first read
	since   map[int]time.Time
	trouble []string
}

// New makes readers of the tree below dir, which do nothing yet.
func New(t Tree, dir string, o Options) *Load {
	r := rand.New(rand.NewPCG(t.Seed, 1))
	return &Load{tree: t, dir: dir, opts: o, order: r.Perm(t.Files), since: map[int]time.Time{}}
}

// Run reads random ranges of the files until ctx ends and all reads under way have.
func (l *Load) Run(ctx context.Context) {
	l.each(func(i int) {
		r := rand.New(rand.NewPCG(l.tree.Seed, uint64(i)+2))
		buf := make([]byte, 2*maxRead)
		for ctx.Err() == nil {
			file, first := l.choose(r)
			size := l.tree.Length(file)
			off := r.Int64N(size)
			n := min(size-off, 1+r.Int64N(maxRead))
			// every other reads what the kernel has no copy of
			l.read(i, buf, file, off, n, !first && r.IntN(2) == 0)
			pause := time.Duration(r.Int64N(2*int64(l.opts.Pause) + 1))
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	})
}

// Pass reads all files from end to end, in an order of chance, once.
func (l *Load) Pass() {
	var next atomic.Int64
	order := rand.New(rand.NewPCG(l.tree.Seed, 3)).Perm(l.tree.Files)
	l.each(func(i int) {
		buf := make([]byte, 2*maxRead)
		for {
			n := int(next.Add(1)) - 1
			if n >= len(order) {
				return
			}
			file := order[n]
			for off := int64(0); off < l.tree.Length(file); off += maxRead {
				l.read(i, buf, file, off, min(maxRead, l.tree.Length(file)-off), off == 0)
			}
		}
	})
	l.mu.Lock()
	l.cold = l.tree.Files
	l.mu.Unlock()
	l.passed.Store(true)
}

// maxRead is the length of the longest read.
const maxRead = 64 << 10

// each runs fn for every reader, each on a thread of its own, and waits for all.
func (l *Load) each(fn func(reader int)) {
	var g sync.WaitGroup
	for i := range max(1, l.opts.Readers) {
		g.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the reader
			fn(i)
		})
	}
	g.Wait()
}

// choose returns a file, and whether it was never read before.
func (l *Load) choose(r *rand.Rand) (file int, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.cold < len(l.order) && !now.Before(l.next) {
		l.next = now.Add(l.opts.Step)
		l.cold++
		return l.order[l.cold-1], true
	}
	return l.order[r.IntN(max(1, l.cold))], false
}

// read reads n bytes at off of a file and notes what came of it. buf holds the bytes read and those
// expected.
func (l *Load) read(reader int, buf []byte, file int, off, n int64, drop bool) {
	start := time.Now()
	l.mu.Lock()
	l.since[reader] = start
	l.mu.Unlock()
	got, want := buf[:n], buf[n:2*n]
	err := readFile(filepath.Join(l.dir, l.tree.Name(file)), got, off, drop)
	took := time.Since(start)
	l.mu.Lock()
	delete(l.since, reader)
	l.mu.Unlock()
	for {
		old := l.longest.Load()
		if int64(took) <= old || l.longest.CompareAndSwap(old, int64(took)) {
			break
		}
	}
	l.reads.Add(1)
	l.bytes.Add(n)
	if err != nil {
		l.failed.Add(1)
		l.note(fmt.Sprintf("%s at %d: %v after %v", l.tree.Name(file), off, err,
			took.Round(time.Millisecond)))
		return
	}
	l.tree.Fill(want, file, off)
	if !bytes.Equal(got, want) {
		l.wrong.Add(1)
		l.note(fmt.Sprintf("%s at %d: wrong bytes from %d on", l.tree.Name(file), off,
			off+int64(differ(got, want))))
	}
}

// differ is where two slices of the same length differ first.
func differ(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func readFile(path string, p []byte, off int64, drop bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if drop {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	n, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) || err == nil && n < len(p) {
		err = fmt.Errorf("%d bytes, want %d", n, len(p))
	}
	return errors.Join(err, f.Close())
}

// note keeps the first few of what went wrong.
func (l *Load) note(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.trouble) < 5 {
		l.trouble = append(l.trouble, s)
	}
}

// Report returns what the readers saw until now.
func (l *Load) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := Report{
		Reads: l.reads.Load(), Failed: l.failed.Load(), Wrong: l.wrong.Load(), Cold: l.cold, Bytes: l.bytes.Load(),
		Longest: time.Duration(l.longest.Load()), Passed: l.passed.Load(), Trouble: append([]string(nil), l.trouble...),
	}
	for _, t := range l.since {
		r.Longest = max(r.Longest, time.Since(t))
	}
	return r
}
