package blobs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// world is a store, and registries whose repositories hold one blob each.
type world struct {
	*Store
	t       *testing.T
	root    string
	blobs   map[string][]byte // by reference; nil: the registry hangs
	fetched atomic.Int64      // bytes
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, root: t.TempDir(), blobs: map[string][]byte{}}
	w.open()
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *world) open() {
	w.t.Helper()
	s, err := Open(w.t.Context(), Options{
		Root: filepath.Join(w.root, "content"), Path: filepath.Join(w.root, "mica", "blobs.db"),
		Fetch: w.fetch, Stall: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Store = s
}

func (w *world) reopen() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.open()
}

func (w *world) fetch(
	ctx context.Context, ref string, desc ocispec.Descriptor, off int64,
) (io.ReadCloser, error) {
	b, ok := w.blobs[ref]
	switch {
	case !ok:
		return nil, errors.New("no such repository")
	case b == nil:
		<-ctx.Done()
		return nil, ctx.Err()
	case int64(len(b)) != desc.Size:
		return nil, errors.New("a blob of another size")
	}
	w.fetched.Add(int64(len(b)) - off)
	return io.NopCloser(bytes.NewReader(b[off:])), nil
}

func (w *world) claim(ref string, b []byte, size int) digest.Digest {
	w.t.Helper()
	d := digest.FromBytes(b)
	if err := w.Claim(w.t.Context(), ocispec.Descriptor{Digest: d, Size: int64(size)}, ref); err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) read(d digest.Digest) ([]byte, error) {
	return content.ReadBlob(w.t.Context(), w.Store, ocispec.Descriptor{Digest: d})
}

func (w *world) walk() (all []digest.Digest) {
	w.t.Helper()
	err := w.Walk(w.t.Context(), func(i content.Info) error {
		all = append(all, i.Digest)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// TestClaim: a claimed blob is there, across restarts, until it is deleted; who reads it downloads it
// once.
func TestClaim(t *testing.T) {
	w := newWorld(t)
	b := bytes.Repeat([]byte("blob"), 1<<18)
	w.blobs["here/image"] = b
	d := w.claim("here/image", b, len(b))
	w.claim("elsewhere/image", b, len(b)) // the latest, which has not got it
	w.reopen()
	if i, err := w.Info(t.Context(), d); err != nil || i.Size != int64(len(b)) {
		t.Errorf("%+v, %v", i, err)
	}
	if all := w.walk(); !slices.Equal(all, []digest.Digest{d}) {
		t.Errorf("it holds %v", all)
	}
	for range 2 {
		if got, err := w.read(d); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	if n := w.fetched.Load(); n != int64(len(b)) {
		t.Errorf("%d bytes were downloaded of %d", n, len(b))
	}
	if all := w.walk(); !slices.Equal(all, []digest.Digest{d}) {
		t.Errorf("it holds %v", all)
	}
	if all, err := w.ListStatuses(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("left over: %v, %v", all, err)
	}
	other := w.claim("here/image", []byte("other"), 5)
	for _, d := range []digest.Digest{d, other} {
		if err := w.Delete(t.Context(), d); err != nil {
			t.Error(err)
		}
		if _, err := w.Info(t.Context(), d); !errdefs.IsNotFound(err) {
			t.Errorf("after it was deleted: %v", err)
		}
		if _, err := w.read(d); !errdefs.IsNotFound(err) {
			t.Errorf("after it was deleted: %v", err)
		}
	}
}

// TestClaimWrongBytes: what does not have the digest is not believed, and another source is asked; so
// is one that sends nothing.
func TestClaimWrongBytes(t *testing.T) {
	w := newWorld(t)
	b := bytes.Repeat([]byte("blob"), 1<<18)
	wrong := slices.Clone(b)
	wrong[1000]++
	w.blobs["honest/image"], w.blobs["forged/image"], w.blobs["hangs/image"] = b, wrong, nil
	d := w.claim("honest/image", b, len(b))
	w.claim("hangs/image", b, len(b))
	w.claim("forged/image", b, len(b))
	if got, err := w.read(d); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := w.fetched.Load(); n != 2*int64(len(b)) {
		t.Errorf("%d bytes were downloaded", n)
	}
	other := w.claim("forged/image", []byte("other"), len(b))
	if got, err := w.read(other); !errdefs.IsUnavailable(err) {
		t.Errorf("%d forged bytes, %v", len(got), err)
	}
}

// TestClaimSizes: a manifest that says a wrong size first does not keep others from the blob.
func TestClaimSizes(t *testing.T) {
	w := newWorld(t)
	b := []byte("a blob of twenty-one ")
	w.blobs["honest/image"], w.blobs["liar/image"] = b, []byte("short")
	w.claim("liar/image", b, 5)
	if w.Note(ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}, "honest/image") {
		t.Error("two sizes of one blob")
	}
	d := w.claim("honest/image", b, len(b))
	if i, err := w.Info(t.Context(), d); err != nil || i.Size != int64(len(b)) {
		t.Errorf("%+v, %v", i, err)
	}
	if got, err := w.read(d); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestClaimsDamaged: a file that is none is put aside.
func TestClaimsDamaged(t *testing.T) {
	w := newWorld(t)
	w.claim("here/image", []byte("blob"), 4)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.root, "mica", "blobs.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	w.open()
	if all := w.walk(); len(all) > 0 {
		t.Errorf("it holds %v", all)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}

// write does what containerd does: it opens a writer of a blob, in a transaction, and asks how much is
// there.
func (w *world) write(d digest.Digest, size int64) (content.Writer, content.Status) {
	w.t.Helper()
	cw, err := w.Writer(w.t.Context(), content.WithRef("ns/1/layer-"+d.String()),
		content.WithDescriptor(ocispec.Descriptor{Size: size}))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cw.Close() })
	start := time.Now()
	if _, err := cw.Status(); err != nil || time.Since(start) > askedWait/2 {
		w.t.Errorf("in the transaction it takes %v: %v", time.Since(start), err)
	}
	status, err := cw.Status()
	if err != nil {
		w.t.Fatal(err)
	}
	return cw, status
}

// TestFetchAll: of a layer that is served a writer says that all is there.
func TestFetchAll(t *testing.T) {
	w := newWorld(t)
	b := []byte("blob")
	d, above := digest.FromBytes(b), digest.FromString("above")
	w.Expect([]digest.Digest{d, above})
	go func() {
		w.Asked(d)
		if !w.Note(ocispec.Descriptor{Digest: d, Size: 4}, "here/image") {
			t.Error("not noted")
		}
		w.Decided(d, true)
		w.Decided(above, false)
	}()
	cw, status := w.write(d, 4)
	if status.Offset != 4 || cw.Digest() != d {
		t.Errorf("of a served layer: %+v, %s", status, cw.Digest())
	}
	if err := cw.Commit(t.Context(), 4, d); !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	if err := cw.Commit(t.Context(), 5, d); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	cw, status = w.write(above, 5)
	if status.Offset != 0 {
		t.Errorf("of one that is not: %+v", status)
	}
	if _, err := io.Copy(cw, strings.NewReader("above")); err != nil {
		t.Error(err)
	}
	if err := cw.Commit(t.Context(), 5, above); err != nil {
		t.Error(err)
	}
}

// TestFetchAllOther: pulls of other snapshotters wait once, and a short time.
func TestFetchAllOther(t *testing.T) {
	for _, told := range []bool{true, false} {
		w := newWorld(t)
		all := []digest.Digest{digest.FromString("1"), digest.FromString("2"), digest.FromString("3")}
		if told {
			w.Expect(all)
		}
		start := time.Now()
		for _, d := range all {
			if _, status := w.write(d, 1); status.Offset != 0 {
				t.Errorf("%+v", status)
			}
		}
		if took := time.Since(start); took > 2*askedWait {
			t.Errorf("told %v: it takes %v", told, took)
		}
	}
}
