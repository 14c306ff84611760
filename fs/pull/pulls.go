package pull

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/copies"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/source"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/remote"
)

// Host has the layers that are brought.
type Host interface {
	// Go runs f in the background until the host ends; false: it has ended.
	Go(f func(ctx context.Context)) bool
	// Panicked notes what a panic has left; what it was about has failed, and nothing else.
	Panicked(v any)
	// Asked is told that containerd has asked for a layer of an image, for the first time.
	Asked(r Request)
	// Replay begins to fetch what a profile names of these layers, until stop is called.
	Replay(ref string, layers map[digest.Digest]bool, p *profile.Profile) (stop func())
	// Show mounts a layer that has come, unless what it shows depends on layers below; lowest says
	// that there are none.
	Show(ctx context.Context, ref string, d digest.Digest, lowest bool) error
	// Sweep removes those of the layers that nobody has asked for and that no pull is bringing.
	Sweep(ctx context.Context, layers []digest.Digest) error
	// RemoveDamaged removes the folder of a layer that is damaged.
	RemoveDamaged(d digest.Digest, why error) error
}

// Options of Pulls. All but the numbers and Profiles must be set.
type Options struct {
	Root      string // folder for temporary files
	Remote    *remote.Client
	Store     *store.Store
	Cache     *cache.Cache
	Budget    *line.Budget
	Prefetch  *source.Prefetch
	Copies    *copies.Copies
	Profiles  *profile.Dir  // of what starts have read on this node; may be nil
	Whole     bool          // layers are downloaded whole, and no index is looked for
	Early     bool          // something is fetched before the index is here
	Limited   bool          // there is a limit of bandwidth
	Deadline  time.Duration // how long a pull goes on without receiving a byte
	Downloads int           // layers downloaded whole at the same time
	Limits    Limits
	Scanning  func(bytes int64) // told how many bytes of memory scans hold; may be nil
	Log       *slog.Logger
}

// Request is that containerd asks for a layer of an image.
type Request struct {
	Ref      string        // the image's reference
	Manifest digest.Digest // of the image's manifest
	Layer    digest.Digest
	DiffID   digest.Digest   // of the layer; "": not known
	Above    []digest.Digest // layers that will be asked for next
	Below    []digest.Digest // layers under it, topmost first; "" for one that is not the Host's
}

// Layers returns the layers of the image, as far as they are known.
func (r *Request) Layers() map[digest.Digest]bool {
	layers := map[digest.Digest]bool{r.Layer: true}
	for _, d := range slices.Concat(r.Above, r.Below) {
		layers[d] = true
	}
	return layers
}

// Pulls are the pulls of a node. New makes them.
type Pulls struct {
	o    Options
	ctx  context.Context // of all pulls
	host Host
	sem  chan struct{} // one token a download
	// cores has a token for each index that is decompressed and checked: more at a time than there
	// are cores take memory, 8 MiB each, and no less time.
	cores    chan struct{}
	scans    *scans
	promises promises

	mu    sync.Mutex
	under map[key]*Pull // those that can be joined
	jobs  map[digest.Digest]*job
	// ignoring: the latest announcement of an image was of one that nobody asked for.
	ignoring bool
	refused  refusals // layers that cannot be served, whoever asks
	wholes   []*Whole // of pulls, the latest last
}

// New returns no pulls yet. They end with ctx.
func New(ctx context.Context, host Host, o Options) *Pulls {
	return &Pulls{
		o: o, ctx: ctx, host: host,
		sem:     make(chan struct{}, o.Downloads),
		cores:   make(chan struct{}, runtime.GOMAXPROCS(0)),
		scans:   newScans(o.Limits.ScanMemory, o.Scanning),
		under:   map[key]*Pull{},
		jobs:    map[digest.Digest]*job{},
		refused: refusals{},
	}
}

// Under returns the pulls that can be joined.
func (a *Pulls) Under() []*Pull {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*Pull, 0, len(a.under))
	for _, p := range a.under {
		all = append(all, p)
	}
	return all
}

// Bringing returns the layers that a pull is bringing.
func (a *Pulls) Bringing() map[digest.Digest]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make(map[digest.Digest]bool, len(a.jobs))
	for d := range a.jobs {
		all[d] = true
	}
	return all
}

// Lookup returns what the repository of an image has for a layer of it; false: nothing.
func (a *Pulls) Lookup(r Request) (bundle.Record, bool, error) {
	p, err := a.Begin(r)
	if err != nil {
		return bundle.Record{}, false, err
	}
	defer p.Leave()
	b, err := p.bundle()
	if err != nil {
		a.forget(p)
		return bundle.Record{}, false, err
	}
	theirs, ok := b.find(r.Layer)
	return theirs, ok, nil
}

// Replace downloads a layer whole for an image, and puts it into the place of another, which gone
// takes away when that is about to happen.
func (a *Pulls) Replace(ctx context.Context, r Request, gone func() error) error {
	p, err := a.Begin(r)
	if err != nil {
		return err
	}
	defer p.Leave()
	a.mu.Lock()
	p.replaces[r.Layer] = gone
	a.mu.Unlock()
	done := make(chan error, 1)
	if !a.host.Go(func(context.Context) {
		err := errors.New("panic")
		defer func() { done <- err }()
		err = p.download(r.Layer, "another repository's index of it was wrong")
	}) {
		return errors.New("micad is stopping")
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// key is what tells pulls apart: two references of one image share a pull.
type key struct {
	repository string
	manifest   digest.Digest
}

func keyOf(ref string, manifest digest.Digest) key {
	return key{proof.RepositoryOf(ref), manifest}
}

// join returns the pull of an image, a new one if none is under way. Pair it with Leave.
func (a *Pulls) join(ref string, manifest digest.Digest) (*Pull, error) {
	image, err := a.o.Remote.Image(ref)
	if err != nil {
		return nil, err
	}
	k := keyOf(ref, manifest)
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.under[k]
	if p == nil {
		p = &Pull{
			all: a, key: k, ref: ref, image: image,
			told: make(chan struct{}), asked: make(chan struct{}),
			downloads: map[digest.Digest]context.CancelCauseFunc{},
			replaces:  map[digest.Digest]func() error{},
		}
		p.ctx, p.stop = context.WithCancel(a.ctx)
		p.bundle = sync.OnceValues(p.find)
		p.manifest = sync.OnceValues(p.fetchManifest)
		a.under[k] = p
	}
	p.waiters++
	if p.idle != nil {
		p.idle.Stop()
		p.idle = nil
	}
	return p, nil
}

// Begin joins the pull of a layer's image, and tells the host if it is the first who asks for the
// image. Pair it with Leave.
func (a *Pulls) Begin(r Request) (*Pull, error) {
	p, err := a.join(r.Ref, r.Manifest)
	if err == nil {
		p.ask(r)
	}
	return p, err
}

// Lost ends the pulls, that nobody waits for, of images that have lost a layer: who asks for such
// an image again has it begun anew, with its replay.
func (a *Pulls) Lost(d digest.Digest) {
	var over []*Pull
	a.mu.Lock()
	for k, p := range a.under {
		p.brought = slices.DeleteFunc(p.brought, func(c digest.Digest) bool { return c == d })
		if p.idle != nil && p.askedLocked() && p.startedLocked(d) {
			p.idle.Stop()
			delete(a.under, k)
			over = append(over, p)
		}
	}
	a.mu.Unlock()
	for _, p := range over {
		a.host.Go(p.End)
	}
}

// forget makes later calls begin anew where a pull has failed.
func (a *Pulls) forget(p *Pull) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.under[p.key] == p {
		delete(a.under, p.key)
	}
}
