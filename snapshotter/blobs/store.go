// Package blobs is a content store for containerd in which the blobs of served layers are there
// too, although nobody has downloaded them.
//
// # The data's way
//
//	containerd's metadata ── content API ──▶ Store ─┬─▶ local: containerd's own files
//	                                                └─▶ claims: a blob that a served layer stands for
//	                                                      └─ read ─▶ Fetch ─▶ local
//
// A claim says how large a blob is and which references have it. Who asks for a claimed blob is told
// that it is there. Who reads it waits until it has been downloaded into containerd's files, as a
// whole and compared with its digest; from then on it is an ordinary blob, and the claim is over.
// Everything else passes through.
//
// # Lives
//
// containerd's database says which blobs a namespace has; the store says which of these can be read.
// A claim lasts until containerd's collector deletes the blob, which is when no image of any namespace
// refers to it: the snapshots of its layer may be gone long before.
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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
)

// Fetch streams a blob of a reference from an offset on: desc.Size - off bytes and io.EOF, or another
// error. The bytes need not be right.
type Fetch func(ctx context.Context, ref string, desc ocispec.Descriptor, off int64) (io.ReadCloser,
	error)

// Store is containerd's content store on disk, and the blobs that are claimed.
type Store struct {
	content.Store // containerd's files
	claims        *claims
	fetch         Fetch
	log           *slog.Logger
	stall         time.Duration // without a byte, a download is given up

	life     context.Context
	end      context.CancelFunc
	fetching sync.WaitGroup
	group    singleflight.Group
	pulls    pulls
}

// Options is what a Store is made of.
type Options struct {
	Root  string        // containerd's folder of content: ROOT/io.containerd.content.v1.content
	Path  string        // of the file that keeps the claims
	Fetch Fetch         // of blobs that are read
	Stall time.Duration // how long a download may bring nothing
	Log   *slog.Logger
}

// Open opens a store. ctx is used for its values alone. Call Close when done.
func Open(ctx context.Context, o Options) (*Store, error) {
	files, err := local.NewStore(o.Root)
	if err != nil {
		return nil, fmt.Errorf("open containerd's content: %w", err)
	}
	c, err := openClaims(o.Path, o.Log)
	if err != nil {
		return nil, err
	}
	s := &Store{Store: files, claims: c, fetch: o.Fetch, log: o.Log, stall: o.Stall}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

// Close ends downloads and closes the claims.
func (s *Store) Close() error {
	s.end()
	s.fetching.Wait()
	return s.claims.Close()
}

// Claim says that a blob is there although it is not: a reference has it, with this size. A blob that
// is there is not claimed. Where another reference has said another size, the blob is downloaded at
// once, because its digest alone tells who is right.
func (s *Store) Claim(ctx context.Context, desc ocispec.Descriptor, ref string) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("claim blob %q: %w", desc.Digest, err)
	}
	if desc.Size < 0 {
		return fmt.Errorf("claim blob %s: it has %d bytes", desc.Digest, desc.Size)
	}
	if _, err := s.Store.Info(ctx, desc.Digest); !errdefs.IsNotFound(err) {
		s.claims.forget(desc.Digest)
		return err
	}
	c, err := s.claims.add(desc.Digest, source{ref, desc.Size})
	if err != nil || c.size() == desc.Size {
		return err
	}
	s.log.Warn("images say different sizes of one blob: it is downloaded", "blob", desc.Digest,
		"sources", c.Sources)
	return s.bring(ctx, desc.Digest, c)
}

// Note is Claim for a moment: Claim has to follow before containerd is told of the blob. It reports
// whether it could: only Claim settles which of two sizes is right.
func (s *Store) Note(desc ocispec.Descriptor, ref string) bool {
	return desc.Size >= 0 && s.claims.note(desc.Digest, source{ref, desc.Size})
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
	if err := s.Store.Walk(ctx, fn, matching...); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var claimed []content.Info // fn may delete
	err = s.claims.each(func(d digest.Digest, c claim) error {
		info := c.info(d)
		if _, err := s.Store.Info(ctx, d); errdefs.IsNotFound(err) &&
			filter.Match(content.AdaptInfo(info)) {
			claimed = append(claimed, info)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, info := range claimed {
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements content.Store. Deleting what is not there is no error, as in containerd's files.
func (s *Store) Delete(ctx context.Context, d digest.Digest) error {
	claimed, err := s.claims.remove(d)
	if err == nil && claimed {
		err = s.Abort(ctx, fetchRef+d.Encoded()) // a download that was given up
	}
	if err != nil && !errdefs.IsNotFound(err) {
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
	c, ok := s.claims.get(desc.Digest)
	if !ok {
		return nil, err
	}
	if err := s.bring(ctx, desc.Digest, c); err != nil {
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

// bring downloads a claimed blob. The download goes on where this reader leaves, because others may
// wait for it.
func (s *Store) bring(ctx context.Context, d digest.Digest, c claim) error {
	done := s.group.DoChan(d.String(), func() (any, error) {
		s.fetching.Add(1)
		defer s.fetching.Done()
		return nil, s.download(d, c)
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// download tries the sources of the blob, the latest first.
func (s *Store) download(d digest.Digest, c claim) error {
	start := time.Now()
	var errs []error
	for _, from := range slices.Backward(c.Sources) {
		err := s.downloadFrom(from.Ref, ocispec.Descriptor{Digest: d, Size: from.Size})
		if err == nil || errdefs.IsAlreadyExists(err) {
			s.log.Info("blob of a served layer is downloaded for a reader of it", "ref", from.Ref,
				"blob", d, "bytes", from.Size, "took", time.Since(start))
			_, err = s.claims.remove(d)
			return err
		}
		if errs = append(errs, fmt.Errorf("%s: %w", from.Ref, err)); s.life.Err() != nil {
			break
		}
	}
	return fmt.Errorf("blob %s is not on this node, because its layer is served without it, and "+
		"cannot be downloaded now; containers of the layer are not concerned, and reading the blob "+
		"works again as soon as the registry answers: %w: %w", d, errdefs.ErrUnavailable,
		errors.Join(errs...))
}

// downloadFrom brings a blob from one reference, or the rest of it.
func (s *Store) downloadFrom(ref string, desc ocispec.Descriptor) (err error) {
	ctx, cancel := context.WithCancelCause(s.life)
	defer cancel(nil)
	name := fetchRef + desc.Digest.Encoded()
	w, err := s.Store.Writer(ctx, content.WithRef(name), content.WithDescriptor(desc))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	status, err := w.Status()
	if err != nil {
		return err
	}
	timer := time.AfterFunc(s.stall, func() {
		cancel(fmt.Errorf("nothing came for %v", s.stall))
	})
	defer timer.Stop()
	r, err := s.fetch(ctx, ref, desc, status.Offset)
	if err == nil {
		defer r.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{w}, alive{r, func() { timer.Reset(s.stall) }},
			make([]byte, 1<<20))
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return err
	}
	err = w.Commit(ctx, desc.Size, desc.Digest)
	if err != nil && !errdefs.IsAlreadyExists(err) { // what has come is not the blob
		err = errors.Join(err, w.Close(), s.Abort(ctx, name))
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
