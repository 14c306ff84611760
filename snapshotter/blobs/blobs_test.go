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
	"testing/iotest"
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
	more    []string          // references that others name
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
		Root: filepath.Join(w.root, "content"), Dir: filepath.Join(w.root, "blobs"),
		Write: func(path string, b []byte) error { return os.WriteFile(path, b, 0o600) },
		Fetch: w.fetch, Stall: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		More: func(context.Context, digest.Digest) []string { return w.more },
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
	case strings.HasPrefix(ref, "breaks/"):
		return io.NopCloser(io.MultiReader(strings.NewReader("garbage"),
			iotest.ErrReader(errors.New("broken off")))), nil
	}
	w.fetched.Add(int64(len(b)) - off)
	return io.NopCloser(bytes.NewReader(b[off:])), nil
}

func (w *world) claim(ref string, b []byte, size int) digest.Digest {
	w.t.Helper()
	d := digest.FromBytes(b)
	desc := ocispec.Descriptor{Digest: d, Size: int64(size)}
	if err := w.Claim(w.t.Context(), desc, ref); err != nil {
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

// TestClaim: a claimed blob is there, across restarts, until it is deleted; who reads it downloads
// it once.
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

// TestClaimWrongBytes: what does not have the digest is not believed, and another source is asked;
// so is one that sends nothing.
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

// TestClaimBroken: what a source has sent before it broke off is not what the next one goes on
// from. A source that only others name is asked too.
func TestClaimBroken(t *testing.T) {
	w := newWorld(t)
	b := bytes.Repeat([]byte("blob"), 1<<18)
	w.blobs["honest/image"], w.blobs["breaks/image"] = b, b
	d := w.claim("breaks/image", b, len(b))
	if _, err := w.read(d); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	w.more = []string{"breaks/image", "honest/image"}
	if got, err := w.read(d); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestClaimsDamaged: a claim that cannot be read costs no other.
func TestClaimsDamaged(t *testing.T) {
	w := newWorld(t)
	d := w.claim("here/image", []byte("blob"), 4)
	w.claim("here/image", []byte("other"), 5)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.root, "blobs", "sha256", digest.FromString("other").Encoded())
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.open()
	if all := w.walk(); !slices.Equal(all, []digest.Digest{d}) {
		t.Errorf("it holds %v", all)
	}
	for _, size := range []int64{-1, 0, maxSize + 1} {
		desc := ocispec.Descriptor{Digest: digest.FromString("x"), Size: size}
		if err := w.Claim(t.Context(), desc, "here/image"); err == nil ||
			w.Note(desc, "here/image") {
			t.Errorf("claimed with %d bytes", size)
		}
	}
}

// write does what containerd does: it opens a writer of a blob, in a transaction, and asks how much
// is there.
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
		w.Decided(d, false)
		w.Decided(above, true)
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
		if took := time.Since(start); took > 5*askedWait/2 {
			t.Errorf("told %v: it takes %v", told, took)
		}
	}
}

// TestFetchAllTogether: two pulls that share a layer both learn what becomes of it, also where
// containerd has it already and asks for those above alone.
func TestFetchAllTogether(t *testing.T) {
	w := newWorld(t)
	base, one, two := digest.FromString("base"), digest.FromString("one"), digest.FromString("two")
	w.Expect([]digest.Digest{base, one})
	w.Expect([]digest.Digest{base, two})
	for i, d := range []digest.Digest{one, two} {
		go w.Asked(d)
		start := time.Now()
		cw, status := w.write(base, 1)
		if status.Offset != 0 {
			t.Errorf("%d: %+v", i, status)
		}
		if took := time.Since(start); took >= askedWait {
			t.Errorf("%d: it takes %v", i, took)
		}
		cw.Close()
		if err := w.Abort(t.Context(), "ns/1/layer-"+base.String()); err != nil {
			t.Error(err)
		}
	}
	go w.Decided(two, true)
	go w.Decided(one, true)
	for _, d := range []digest.Digest{one, two} {
		if _, status := w.write(d, 1); status.Offset != 0 {
			t.Errorf("%+v", status)
		}
	}
}

// TestFetchAllAgain: what became of a layer once says nothing of the next pull.
func TestFetchAllAgain(t *testing.T) {
	w := newWorld(t)
	d := digest.FromString("blob")
	for range 2 {
		w.Expect([]digest.Digest{d})
		go func() {
			w.Asked(d)
			time.Sleep(25 * time.Millisecond)
			w.Note(ocispec.Descriptor{Digest: d, Size: 4}, "here/image")
			w.Decided(d, false)
		}()
		cw, status := w.write(d, 4)
		if status.Offset != 4 {
			t.Errorf("%+v", status)
		}
		cw.Close()
		if err := errors.Join(w.Abort(t.Context(), "ns/1/layer-"+d.String()),
			w.Delete(t.Context(), d)); err != nil {
			t.Error(err)
		}
	}
	w.Expect([]digest.Digest{d}) // by another snapshotter
	start := time.Now()
	if _, status := w.write(d, 4); status.Offset != 0 || time.Since(start) > 2*askedWait {
		t.Errorf("%+v after %v", status, time.Since(start))
	}
}

// TestWriteClaimed: what a client writes is kept, although the blob is claimed.
func TestWriteClaimed(t *testing.T) {
	w := newWorld(t)
	d := w.claim("gone/image", []byte("blob"), 4)
	if _, err := (written{w.Store}).Info(t.Context(), d); !errdefs.IsNotFound(err) {
		t.Errorf("to who writes it, it is there: %v", err)
	}
	err := content.WriteBlob(t.Context(), written{w.Store}, "write", strings.NewReader("blob"),
		ocispec.Descriptor{Digest: d, Size: 4})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.read(d); err != nil || string(got) != "blob" {
		t.Errorf("%q, %v", got, err)
	}
}
