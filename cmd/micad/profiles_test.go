package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/profile"
)

// serveProfiles serves a folder of profiles as micad does, on a socket that speaks gRPC as well.
func serveProfiles(t *testing.T, dir *profile.Dir) *admin.Client {
	t.Helper()
	address := filepath.Join(t.TempDir(), "s")
	l, err := listen(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	split := newSplitter(l)
	web := &http.Server{Handler: newProfilesHandler(dir, slog.New(slog.DiscardHandler))}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := split.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { _ = web.Serve(split.http) })
	t.Cleanup(func() {
		stop()
		web.Close()
		wg.Wait()
	})
	return admin.NewClient(address)
}

func TestProfiles(t *testing.T) {
	dir := profile.NewDir(t.TempDir())
	c, ctx := serveProfiles(t, dir), t.Context()
	m := digest.FromString("manifest")
	p := &profile.Profile{Manifest: m, Runs: 1,
		Ranges: []profile.Range{{Layer: digest.FromString("l"), Size: 7, Runs: 1}}}
	encoded, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	list := func() (out []admin.Profile) {
		t.Helper()
		if err := c.Get(ctx, admin.PathProfiles, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if l := list(); len(l) != 0 {
		t.Errorf("list: %v", l)
	}
	if _, err := c.Profile(ctx, m); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("GET of nothing: %v", err)
	}
	if err := c.RemoveProfile(ctx, m); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("DELETE of nothing: %v", err)
	}
	for i, replace := range []bool{false, false, true} {
		if err := c.PutProfile(ctx, m, encoded, replace); err != nil {
			t.Fatal(err)
		}
		b, err := c.Profile(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := profile.Decode(b, profile.Limits{})
		if want := []int{1, 2, 1}[i]; err != nil || got.Runs != want || len(got.Ranges) != 1 {
			t.Errorf("after PUT %d: %+v, %v; want %d runs", i, got, err, want)
		}
	}
	if l := list(); len(l) != 1 || l[0].Manifest != m || l[0].Bytes != 7 || l[0].Runs != 1 ||
		l[0].Saved.IsZero() || l[0].Error != "" {
		t.Errorf("list: %+v", l)
	}
	for name, c2 := range map[string]struct {
		m    digest.Digest
		b    []byte
		says string
	}{
		"damaged":          {m, encoded[:20], "invalid profile"},
		"another's":        {digest.FromString("other"), encoded, "the profile is of manifest"},
		"too large":        {m, make([]byte, admin.MaxProfile+1), "too large"},
		"no digest at all": {"x", encoded, "the profile is of manifest"},
	} {
		if err := c.PutProfile(ctx, c2.m, c2.b, false); err == nil ||
			!strings.Contains(err.Error(), c2.says) {
			t.Errorf("PUT, %s: %v", name, err)
		}
	}
	if err := c.RemoveProfile(ctx, m); err != nil {
		t.Error(err)
	}
	if l := list(); len(l) != 0 {
		t.Errorf("list: %v", l)
	}
}
