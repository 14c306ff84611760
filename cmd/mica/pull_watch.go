package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs"
)

const (
	pollEvery  = 500 * time.Millisecond // how often micad is asked what it has received
	plainEvery = 5 * time.Second        // how often a line says what is waited for, no terminal
	indexPart  = 20                     // an index takes less than this part of its image
)

// pullStage is what a layer of a pull waits for.
type pullStage int

const (
	notAsked pullStage = iota // containerd has not asked the snapshotter for it
	asked                     // micad has been asked
	ordinary                  // containerd downloads and unpacks it
	unpacked                  // containerd has
	served                    // micad serves it, or will as soon as it is mounted
	wasThere                  // containerd had it before
)

// pullLayer is a layer of the image that is pulled.
type pullLayer struct {
	ocispec.Descriptor
	stage pullStage
	bar   *show.Bar // of its download by containerd; nil: that has not begun
}

// pullLines is where it is told how a pull goes: bars and a status on a terminal, else lines.
type pullLines struct {
	w        io.Writer
	terminal *show.Bars // nil or quiet: no terminal
	quiet    bool
}

// onTerminal says whether what is told may be replaced.
func (l *pullLines) onTerminal() bool { return l.terminal != nil && !l.terminal.Quiet() }

// Write implements io.Writer, for whole lines.
func (l *pullLines) Write(lines []byte) (int, error) {
	if l.onTerminal() {
		return l.terminal.Write(lines)
	}
	return l.w.Write(lines)
}

// pullWatch knows how far a pull is, and tells. It hears of its course from those who take part:
// the resolver, the handler of descriptors, and the snapshotter.
type pullWatch struct {
	ref, host string
	micad     *admin.Client
	lines     *pullLines
	start     time.Time
	stop      func() // ends the telling, and waits for its end
	before    int64  // bytes that micad had received for pulls and reads
	unpacking map[string]*pullLayer

	mu       sync.Mutex
	target   digest.Digest // "" before the registry has answered
	layers   []*pullLayer
	mounted  int   // layers, once containerd has them all; -1 before
	received int64 // bytes that micad has received since the start
	status   map[digest.Digest]fs.Status
	whole    *admin.Fallback // what micad has downloaded whole; nil: nothing, or not asked yet
}

func newPullWatch(named reference.Named, micad *admin.Client, lines *pullLines) *pullWatch {
	return &pullWatch{
		ref: named.String(), host: reference.Domain(named), micad: micad, lines: lines,
		start: time.Now(), stop: func() {}, mounted: -1, unpacking: map[string]*pullLayer{},
	}
}

// Write implements io.Writer, for whole lines beside what is told.
func (w *pullWatch) Write(lines []byte) (int, error) { return w.lines.Write(lines) }

func (w *pullWatch) sayf(format string, args ...any) {
	if !w.lines.quiet {
		fmt.Fprintf(w.lines, format+"\n", args...)
	}
}

// begin asks micad how it is, and tells of the pull from then on, until end.
func (w *pullWatch) begin(ctx context.Context) error {
	var err error
	if w.before, err = w.receivedByMicad(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	telling.Go(func() { w.tell(ctx) })
	w.stop = func() {
		cancel()
		telling.Wait()
	}
	return nil
}

// end takes away what is drawn. It may be called again.
func (w *pullWatch) end() {
	w.stop()
	if w.lines.onTerminal() {
		w.lines.terminal.Clear()
	}
}

// receivedByMicad counts what micad has received from registries, without what fills brought: those
// go on for images that were pulled before.
func (w *pullWatch) receivedByMicad(ctx context.Context) (int64, error) {
	m, err := w.micad.Metrics(ctx)
	return int64(m["mica_remote_received_bytes_total"] - m["mica_fill_bytes_total"]), err
}

// tell tells what is waited for until ctx ends.
func (w *pullWatch) tell(ctx context.Context) {
	every := plainEvery
	if w.lines.onTerminal() {
		every = show.Redraw
	}
	poll, draw := time.NewTicker(pollEvery), time.NewTicker(every)
	defer poll.Stop()
	defer draw.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
			w.poll(ctx)
			continue
		case <-draw.C:
		}
		line := fmt.Sprintf("%s %s", tookText(time.Since(w.start)), w.waitsFor())
		if w.lines.onTerminal() {
			w.lines.terminal.SetStatus(line)
		} else {
			w.sayf("%s", line)
		}
	}
}

// poll learns what micad has received. Where it does not answer, the number stays.
func (w *pullWatch) poll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*pollEvery)
	defer cancel()
	if n, err := w.receivedByMicad(ctx); err == nil {
		w.mu.Lock()
		w.received = max(w.received, n-w.before)
		w.mu.Unlock()
	}
}

// waitsFor says what the pull waits for now.
func (w *pullWatch) waitsFor() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.target == "":
		return "resolving " + w.ref
	case w.layers == nil:
		return "waiting for manifest and configuration"
	case w.mounted >= 0:
		return fmt.Sprintf("waiting for mounts: %d of %d layers mounted", w.mounted,
			len(w.layers))
	}
	for i, l := range w.layers {
		which := fmt.Sprintf("layer %d of %d: ", i+1, len(w.layers))
		switch {
		case l.stage == asked && w.received > w.sizeLocked()/indexPart:
			return which + fmt.Sprintf("micad downloads what has no index, %s of %s",
				show.Bytes(w.received), show.Bytes(w.sizeLocked()))
		case l.stage == asked:
			return which + "micad looks for an index and mounts it"
		case l.stage == ordinary && l.bar != nil && l.bar.Bytes() >= l.Size:
			return which + "containerd unpacks it"
		case l.stage == ordinary && l.bar != nil:
			return which + fmt.Sprintf("containerd downloads it, %s of %s",
				show.Bytes(l.bar.Bytes()), show.Bytes(l.Size))
		case l.stage == ordinary:
			return which + "containerd begins to download it"
		case l.stage == notAsked:
			return which + "containerd begins with it"
		}
	}
	return "waiting for containerd to enter the image"
}

// sizeLocked is what the image's layers have in the registry.
func (w *pullWatch) sizeLocked() (n int64) {
	for _, l := range w.layers {
		n += l.Size
	}
	return n
}

// resolve hears what the reference stands for.
func (w *pullWatch) resolve(d ocispec.Descriptor) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = d.Digest
}

// resolved says whether the registry has told what the reference stands for.
func (w *pullWatch) resolved() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.target != ""
}

// chosen says whether the manifest of the platform is known.
func (w *pullWatch) chosen() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.layers != nil
}

// handler hears of the image's layers when the manifest is there.
func (w *pullWatch) handler(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) (
		[]ocispec.Descriptor, error,
	) {
		children, err := next.Handle(ctx, d)
		if err != nil || !images.IsManifestType(d.MediaType) {
			return children, err
		}
		w.mu.Lock()
		w.layers = []*pullLayer{}
		for _, c := range children {
			if images.IsLayerType(c.MediaType) {
				w.layers = append(w.layers, &pullLayer{Descriptor: c})
			}
		}
		n, size := len(w.layers), w.sizeLocked()
		w.mu.Unlock()
		w.sayf("%s: %d layers, %s, %s", w.ref, n, show.Bytes(size), w.target)
		return children, nil
	})
}

// fetching counts what is read of a layer that containerd downloads.
func (w *pullWatch) fetching(d ocispec.Descriptor, body io.ReadCloser) io.ReadCloser {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.layers, func(l *pullLayer) bool { return l.Digest == d.Digest })
	if i < 0 {
		return body // a configuration
	}
	p := w.lines.terminal
	if p == nil {
		p = &show.Bars{}
	}
	bar := p.Add("layer "+show.Short(d.Digest.String()), d.Size)
	w.layers[i].bar = bar
	return &download{bar.Reader(body), body, bar}
}

// download is a layer that containerd downloads. Its bar goes with its end.
type download struct {
	io.Reader
	body io.Closer
	bar  *show.Bar
}

// Close implements io.Closer.
func (d *download) Close() error {
	d.bar.Remove()
	return d.body.Close()
}
