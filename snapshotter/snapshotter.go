// Package snapshotter is Mica's containerd snapshotter. It serves the layers of images from Layers,
// without unpacking them, and does everything else as containerd's own overlay snapshotter does.
//
// # The data's way
//
// containerd prepares the layers of an image one after another, lowest first, and names in labels
// the chain ID that it wants and the layer that makes it. Prepare asks Layers to mount the layer,
// commits a snapshot that refers to it, and answers ErrAlreadyExists: containerd then neither
// fetches nor unpacks the layer. A layer that Layers promises is mounted after that, while
// containerd goes on; who needs the snapshot waits for it. The container's own snapshot is an
// overlay mount whose lower directories are those that Layers returned:
//
//	Prepare ── labels ──▶ Layers.Mount ── directory ──▶ metadata.db ──▶ Mounts: overlay lowerdir=
//
// A layer that Layers cannot serve becomes an ordinary snapshot, as do the layers above it in the
// same chain, because containerd fetches those anyway. Fallbacks tells which, and why.
//
// A layer that is not proved yet is one repository's word. The last moment at which it can be kept
// from another one's containers is when their snapshot is prepared: see admit.
//
// # On disk
//
// Below the root lie
//
//	metadata.db     containerd's storage package; a served snapshot bears the private label "mica/served" (see record)
//	metadata.db.*   a copy of it, without which no image that is here could start a container once
//	                the database is damaged; and what became of one that was (see database)
//	snapshots/N/    fs and work of the ordinary snapshot with number N; a served snapshot has no directory
//	served/DIGEST   an empty file for each layer that was given to Layers.Mount and not yet to Layers.Remove
//
// # Concurrency
//
// All methods may be called in parallel. No transaction of metadata.db is held while Layers works
// or while a restarted layer is waited for. What keeps a layer from being removed while it is
// mounted for another snapshot is counted (see layerUses), not locked.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	continuityfs "github.com/containerd/continuity/fs"
)

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// Snapshotter implements containerd's snapshots.Snapshotter and snapshots.Cleaner. Make it with
// New.
type Snapshotter struct {
	root   string
	layers Layers
	images Images // nil: not to be asked
	blobs  Blobs  // nil: nobody wants to know
	log    *slog.Logger
	now    func() time.Time

	remapIDs     bool
	mountOptions []string // of overlay mounts; complete after Open
	// Where a layer is served, these make one device of all: the end of workdir, and an option of
	// views. BuildKit compares layers by all their bytes, and merges none, where it meets an option
	// that it does not know; it takes no notice of the first, and leaves out the second.
	workDevice, viewDevice string

	meta             *database
	uses             layerUses
	restored         restored
	imagesBySnapshot sync.Map // by the snapshot's key; see doubtful
	fallbacks        fallbacks
	counters         counters

	life       context.Context // of what runs in the background; ended by Close
	end        context.CancelFunc
	background sync.WaitGroup
}

// Option changes how a Snapshotter works.
type Option func(*Snapshotter)

// WithRemapIDs returns mounts with uidmap= and gidmap= options for snapshots that are labelled with
// a mapping. It belongs to the capability remap-ids: without that in containerd's configuration,
// containerd changes owners itself.
func WithRemapIDs() Option { return func(s *Snapshotter) { s.remapIDs = true } }

// WithMountOptions adds options to overlay mounts, such as "volatile". They win over those that
// Open chooses.
func WithMountOptions(options ...string) Option {
	return func(s *Snapshotter) { s.mountOptions = append(s.mountOptions, options...) }
}

// WithImages has containerd's images asked for whom a container is made, before it is shown layers
// that are not proved. Without them, such layers are proved before any container is shown them.
func WithImages(images Images) Option { return func(s *Snapshotter) { s.images = images } }

// WithBlobs has somebody told of the layers that stand for their blobs.
func WithBlobs(blobs Blobs) Option { return func(s *Snapshotter) { s.blobs = blobs } }

// WithLogger sets the logger; without it slog.Default is used.
func WithLogger(log *slog.Logger) Option { return func(s *Snapshotter) { s.log = log } }

// New returns a snapshotter that keeps its state below root, an absolute path. It does nothing
// before Open.
func New(root string, layers Layers, options ...Option) *Snapshotter {
	s := &Snapshotter{root: root, layers: layers, log: slog.Default(), now: time.Now}
	for _, o := range options {
		o(s)
	}
	return s
}

// Open prepares the root directory and opens the metadata. Call Close when done, also after an
// error. Layers of an earlier run are mounted by Restore, or when a snapshot first needs them. ctx
// is used for its values alone.
func (s *Snapshotter) Open(ctx context.Context) error {
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := checkDir(s.root); err != nil {
		return fmt.Errorf("open snapshotter: %w", err)
	}
	for _, dir := range []string{s.root, s.snapshotsDir(), s.servedDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("open snapshotter: %w", err)
		}
	}
	dtype, err := continuityfs.SupportsDType(s.root)
	if err != nil {
		return fmt.Errorf("open snapshotter: %w", err)
	}
	if !dtype {
		return fmt.Errorf("open snapshotter: the filesystem of %s lacks d_type, which overlayfs "+
			"needs: format XFS with ftype=1, or choose another root", s.root)
	}
	if err := s.chooseMountOptions(); err != nil {
		return fmt.Errorf("open snapshotter: %w", err)
	}
	s.meta, err = openDatabase(ctx, s.root, s.log)
	if err != nil {
		return fmt.Errorf("open snapshotter: %w", err)
	}
	s.background.Go(func() { s.meta.keepCopy(s.life) })
	return nil
}

// chooseMountOptions adds the options that overlay mounts need on this kernel, unless they were
// given: the last one wins in the kernel.
func (s *Snapshotter) chooseMountOptions() error {
	if !hasOption(s.mountOptions, "userxattr") {
		need, err := overlayutils.NeedsUserXAttr(s.root)
		if err != nil {
			return fmt.Errorf("find out whether overlayfs needs userxattr: %w", err)
		}
		if need {
			s.mountOptions = append(s.mountOptions, "userxattr")
		}
	}
	if !hasOption(s.mountOptions, "index") {
		// The index makes a lower directory that is in use elsewhere an error; the parameter is
		// missing where the kernel has no such option.
		if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
			s.mountOptions = append(s.mountOptions, "index=off")
		}
	}
	if !hasOption(s.mountOptions, "xino") {
		// Each served layer is a file system of its own. With this option all files of a container
		// have the same device and inode numbers of their own, as they have where all layers lie on
		// one file system.
		if _, err := os.Stat("/sys/module/overlay/parameters/xino_auto"); err == nil {
			s.workDevice, s.viewDevice = ",xino=on", s.redirectOption()+"xino=on"
		}
	}
	return nil
}

// redirectOption returns the option redirect_dir with the value that the kernel takes by itself, to
// be followed by another one; "" where that value is not known.
func (s *Snapshotter) redirectOption() string {
	for _, o := range []string{"userxattr", "redirect_dir", "metacopy"} {
		if hasOption(s.mountOptions, o) {
			return ""
		}
	}
	value := "off"
	for _, parameter := range []string{"redirect_dir", "metacopy"} { // the second needs the first
		b, err := os.ReadFile("/sys/module/overlay/parameters/" + parameter)
		if err != nil {
			return ""
		}
		if strings.HasPrefix(string(b), "Y") {
			value = "on"
		}
	}
	return "redirect_dir=" + value + ","
}

// MayHaveForgotten says that snapshots may have been lost with a damaged database: what no snapshot refers
// to may be in use all the same, and must not be removed.
func (s *Snapshotter) MayHaveForgotten() bool { return s.meta.mayHaveForgotten }

// Close closes the metadata. Mounted layers stay.
func (s *Snapshotter) Close() error {
	if s.end != nil {
		s.end()
	}
	s.background.Wait()
	if s.meta == nil {
		return nil
	}
	return s.meta.Close()
}

func (s *Snapshotter) snapshotsDir() string { return filepath.Join(s.root, "snapshots") }
func (s *Snapshotter) upperDir(id string) string {
	return filepath.Join(s.snapshotsDir(), id, "fs")
}
func (s *Snapshotter) workDir(id string) string {
	return filepath.Join(s.snapshotsDir(), id, "work")
}

// hasOption reports whether options hold key, alone or with a value.
func hasOption(options []string, key string) bool {
	for _, o := range options {
		if k, _, _ := strings.Cut(o, "="); k == key {
			return true
		}
	}
	return false
}

// CheckRoot reports whether a path can be the root of a Snapshotter. It looks at the path alone.
func CheckRoot(root string) error { return checkDir(root) }

// checkDir reports whether a path can be a lower directory of overlayfs as containerd writes it.
func checkDir(dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return fmt.Errorf("directory %q: not an absolute, clean path", dir)
	}
	if strings.ContainsAny(dir, `:,\"`) {
		return errors.New("directory " + dir + `: holds one of : , \ " which overlayfs cannot take`)
	}
	return nil
}
