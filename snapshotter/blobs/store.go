// Package blobs is a content store for containerd in which the blobs of served layers are there
// too, although nobody has downloaded them.
//
// # The data's way
//
//	containerd's metadata ── content API ──▶ Store ─┬─▶ local: containerd's own files
//	                                                └─▶ claims: a blob that a served layer stands for
//	                                                      └─ read ─▶ Fetch ─▶ local
//
// A claim says how large a blob is and which references have it. Who asks for a claimed blob is
// told that it is there. Who reads it waits until it has been downloaded into containerd's files,
// as a whole and compared with its digest; from then on it is an ordinary blob, and the claim is
// over. Everything else passes through.
//
// # Lives
//
// containerd's database says which blobs a namespace has; the store says which of these can be
// read. A claim lasts until containerd's collector deletes the blob, which is when no image of any
// namespace refers to it: the snapshots of its layer may be gone long before.
//
// # Pulls that fetch all
//
// Some pulls fetch every blob beside unpacking (Docker from 29.9 on). They open a Writer before
// anybody knows whether the layer is served: see Writer.
//
// # Concurrency
//
// All methods may run in parallel. Several readers of one blob share its download. Info, Writer and
// the first Status of a writer run inside a transaction of containerd's and wait for nobody.
package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
)

// Fetch streams a blob of a reference from an offset on: desc.Size - off bytes and io.EOF, or
// another error. The bytes need not be right.
type Fetch func(ctx context.Context, ref string, desc ocispec.Descriptor, off int64) (io.ReadCloser,
	error)

// Store is containerd's content store on disk, and the blobs that are claimed.
type Store struct {
	content.Store // containerd's files
	o             Options
	claims        *claims

	life     context.Context
	end      context.CancelFunc
	fetching sync.WaitGroup
	group    singleflight.Group
	pulls    pulls
}

// Options is what a Store is made of.
type Options struct {
	Root  string                                  // containerd's folder of content
	Dir   string                                  // the folder that keeps the claims
	Write func(path string, content []byte) error // replaces a file, and has it on disk
	Fetch Fetch                                   // of blobs that are read
	// More returns references that are said to have a blob, beside those that claimed it.
	More  func(ctx context.Context, d digest.Digest) []string
	Stall time.Duration // how long a download may bring nothing
	Log   *slog.Logger
}

// Open opens a store. ctx is used for its values alone. Call Close when done.
func Open(ctx context.Context, o Options) (*Store, error) {
	files, err := local.NewStore(o.Root)
	if err != nil {
		return nil, fmt.Errorf("open containerd's content: %w", err)
	}
	s := &Store{Store: files, claims: loadClaims(o.Dir, o.Write, o.Log), o: o}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.sweep(); err != nil {
		o.Log.Warn("downloads that nobody wants any more are left over", "err", err)
	}
	return s, nil
}

// sweep ends downloads of a former run whose blobs are not claimed any more.
func (s *Store) sweep() error {
	all, err := s.Store.ListStatuses(s.life)
	if err != nil {
		return fmt.Errorf("list writes of content: %w", err)
	}
	for _, status := range all {
		hex, ok := strings.CutPrefix(status.Ref, fetchRef)
		if _, claimed := s.claims.get(digest.Digest(hex)); ok && !claimed {
			if err := s.Abort(s.life, status.Ref); err != nil {
				return fmt.Errorf("end write %s: %w", status.Ref, err)
			}
		}
	}
	return nil
}

// Close ends downloads.
func (s *Store) Close() error {
	s.end()
	s.fetching.Wait()
	return nil
}

// Claim says that a blob is there although it is not: a reference has it, with this size. A blob
// that is there is not claimed. Where another reference has said another size, the blob is
// downloaded at once, because its digest alone tells who is right.
func (s *Store) Claim(ctx context.Context, desc ocispec.Descriptor, ref string) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("claim blob %q: %w", desc.Digest, err)
	}
	if desc.Size <= 0 || desc.Size > maxSize {
		return fmt.Errorf("claim blob %s: it has %d bytes", desc.Digest, desc.Size)
	}
	if s.Here(ctx, desc.Digest) {
		_, err := s.claims.remove(desc.Digest)
		return err
	}
	c := s.claims.add(desc.Digest, source{ref, desc.Size})
	if c.size() == desc.Size {
		_, err := s.claims.keep(desc.Digest)
		return err
	}
	s.o.Log.Warn("images say different sizes of one blob: it is downloaded", "blob", desc.Digest,
		"sources", c.Sources)
	return s.bring(ctx, desc.Digest)
}

// Note is Claim in memory: Claim has to follow before containerd is told of the blob. It reports
// whether it could: only Claim settles which of two sizes is right.
func (s *Store) Note(desc ocispec.Descriptor, ref string) bool {
	return desc.Digest.Validate() == nil && desc.Size > 0 && desc.Size <= maxSize &&
		s.claims.note(desc.Digest, source{ref, desc.Size})
}

// Here reports whether a blob is on disk, as a whole.
func (s *Store) Here(ctx context.Context, d digest.Digest) bool {
	_, err := s.Store.Info(ctx, d)
	return err == nil
}

// Info implements content.Store.
func (s *Store) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	info, err := s.Store.Info(ctx, d)
	if !errdefs.IsNotFound(err) {
		return info, err
	}
	if c, ok := s.claims.get(d); ok {
		return c.info(d), nil
	}
	return info, err
}

// Walk implements content.Store.
func (s *Store) Walk(ctx context.Context, fn content.WalkFunc, matching ...string) error {
	filter, err := filters.ParseAll(matching...)
	if err != nil {
		return err
	}
	// without a blob there is no folder
	if _, err := os.Stat(filepath.Join(s.o.Root, "blobs")); err == nil {
		err = s.Store.Walk(ctx, fn, matching...)
		if err != nil {
			return err
		}
	}
	for d, c := range s.claims.list() {
		info := c.info(d)
		if s.Here(ctx, d) || !filter.Match(content.AdaptInfo(info)) {
			continue
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements content.Store. Deleting what is not there is no error, as in containerd's
// files.
func (s *Store) Delete(ctx context.Context, d digest.Digest) error {
	claimed, err := s.claims.remove(d)
	if err == nil && claimed {
		err = ignoreMissing(s.Abort(ctx, fetchRef+d.String())) // a download that was given up
	}
	if err != nil {
		return err
	}
	return s.Store.Delete(ctx, d)
}

// ReaderAt implements content.Store. It returns when all of the blob is on disk.
func (s *Store) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	r, err := s.Store.ReaderAt(ctx, desc)
	if !errdefs.IsNotFound(err) {
		return r, err
	}
	if _, ok := s.claims.get(desc.Digest); !ok {
		return nil, err
	}
	if err := s.bring(ctx, desc.Digest); err != nil {
		return nil, err
	}
	return s.Store.ReaderAt(ctx, desc)
}

// ListStatuses implements content.Store. Downloads of claimed blobs are not listed, because
// containerd's collector aborts what its database does not know.
func (s *Store) ListStatuses(ctx context.Context, matching ...string) ([]content.Status, error) {
	all, err := s.Store.ListStatuses(ctx, matching...)
	listed := all[:0]
	for _, status := range all {
		if !strings.HasPrefix(status.Ref, fetchRef) {
			listed = append(listed, status)
		}
	}
	return listed, err
}

// fetchRef begins the names of downloads of claimed blobs.
const fetchRef = "mica-fetch-"

// maxSize bounds what an image may say of a blob's size, bytes.
const maxSize = 1 << 40

// errForgotten: nobody has the blob any more.
var errForgotten = fmt.Errorf("the blob's image was removed meanwhile: %w", errdefs.ErrNotFound)

// bring downloads a claimed blob. The download goes on where this reader leaves, because others may
// wait for it.
func (s *Store) bring(ctx context.Context, d digest.Digest) error {
	s.fetching.Add(1)
	done := s.group.DoChan(d.String(), func() (any, error) { return nil, s.download(d) })
	ended := make(chan error, 1)
	go func() {
		defer s.fetching.Done()
		ended <- (<-done).Err
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// download tries the sources of the blob, the latest first, and then those that others name.
func (s *Store) download(d digest.Digest) error {
	c, ok := s.claims.get(d)
	if !ok {
		return errForgotten
	}
	start := time.Now()
	sources := slices.Clone(c.Sources)
	slices.Reverse(sources)
	var errs []error
	asked := false
	for i := 0; ; i++ {
		if i == len(sources) && !asked {
			asked = true
			for _, ref := range s.o.More(s.life, d) {
				if more := (source{ref, c.size()}); !slices.Contains(sources, more) {
					sources = append(sources, more)
				}
			}
		}
		if i >= len(sources) {
			break
		}
		if _, ok := s.claims.get(d); !ok {
			errs = append(errs, errForgotten)
			break
		}
		from := sources[i]
		desc := ocispec.Descriptor{Digest: d, Size: from.Size}
		resumed, err := s.downloadFrom(from.Ref, desc)
		if resumed && errdefs.IsFailedPrecondition(err) { // what was there was wrong, maybe
			_, err = s.downloadFrom(from.Ref, desc)
		}
		if err == nil || errdefs.IsAlreadyExists(err) {
			s.o.Log.Info("blob of a served layer is downloaded for a reader of it", "ref", from.Ref,
				"blob", d, "bytes", from.Size, "took", time.Since(start))
			_, err = s.claims.remove(d)
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", from.Ref, err))
		if errors.Is(err, errForgotten) || errors.Is(err, syscall.ENOSPC) || s.life.Err() != nil {
			break // another source does not help
		}
	}
	return fmt.Errorf("blob %s is not on this node, because its layer is served without it, and "+
		"cannot be downloaded now; containers of the layer are not concerned; it is tried again "+
		"when the blob is read again: %w: %w", d, errdefs.ErrUnavailable, errors.Join(errs...))
}

// downloadFrom brings a blob from one reference. It goes on where a download broke off when micad
// ended, and says so; another one leaves nothing.
func (s *Store) downloadFrom(ref string, desc ocispec.Descriptor) (resumed bool, err error) {
	ctx, cancel := context.WithCancelCause(s.life)
	defer cancel(nil)
	name := fetchRef + desc.Digest.String()
	w, err := s.Store.Writer(ctx, content.WithRef(name), content.WithDescriptor(desc))
	if err != nil {
		return false, err
	}
	defer func() {
		err = errors.Join(err, w.Close())
		if err != nil && s.life.Err() == nil && !errdefs.IsAlreadyExists(err) {
			err = errors.Join(err, ignoreMissing(s.Abort(s.life, name)))
		}
	}()
	status, err := w.Status()
	if err != nil {
		return false, err
	}
	resumed = status.Offset > 0
	timer := time.AfterFunc(s.o.Stall, func() {
		cancel(fmt.Errorf("nothing came for %v", s.o.Stall))
	})
	defer timer.Stop()
	r, err := s.o.Fetch(ctx, ref, desc, status.Offset)
	if err == nil {
		defer r.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{w}, alive{r, func() { timer.Reset(s.o.Stall) }},
			make([]byte, 1<<20))
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return resumed, err
	}
	if _, ok := s.claims.get(desc.Digest); !ok {
		return resumed, errForgotten
	}
	return resumed, w.Commit(ctx, desc.Size, desc.Digest)
}

func ignoreMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// alive is a reader that tells when bytes have come.
type alive struct {
	r    io.Reader
	came func()
}

func (a alive) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if n > 0 {
		a.came()
	}
	return n, err
}
