//go:build browser

package page

import (
	"context"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	shown "github.com/mica-snapshotter/mica/cmd/page"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/integration/fixture"
)

var pictures = flag.String("pictures", "", "folder to put pictures of the page into")

const (
	loadMost = 300 * time.Millisecond
	images   = 50
	layers   = 20 // of each image
)

// crowded is a node with 1,000 layers, 20 starts and their requests.
func crowded(received uint64) shown.State {
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	s := shown.State{
		Now: now, Node: "node-7", Received: 34e9 + received,
		Name:  func(key string) string { return key },
		Info:  admin.Info{Version: "1.0.0", Started: now.Add(-50 * time.Hour), Unlabelled: 3},
		Cache: cache.Status{Used: 41e9, Quota: 60e9},
		Users: map[string][]string{},
		Problems: []shown.Problem{{First: now.Add(-time.Hour), Last: now.Add(-time.Minute), Count: 12,
			What: "read of a layer fails, layer: sha256:0123456789ab, err: read: dial tcp 10.0.0.7:443: " +
				"connect: connection refused", Do: shown.Advice("connection refused")}},
		Fallbacks: []admin.Fallback{{Ref: "registry.example.com/team/models:2", Time: now,
			Layer:  digest.FromString("zstd").String(),
			Reason: "the registry refuses access: 401 Unauthorized"}},
	}
	for i := range images {
		ref := fmt.Sprintf("registry.example.com/team-%d/service-%d:1.%d.0", i%7, i, i)
		if i%3 > 0 {
			s.Users[ref] = []string{fmt.Sprintf("service-%d-7c9f8d-x2k4p/app", i)}
		}
		for j := range layers {
			d := digest.FromString(fmt.Sprint(i, j))
			size := int64(1+j) * 7e6
			state, present := "lazy", size/int64(2+j%5)
			if (i+j)%4 == 0 {
				state, present = "verified", size
			}
			s.Layers = append(s.Layers, fs.Status{Layer: d, Ref: ref, State: state, Total: size,
				Present: present})
			s.Usage = append(s.Usage, cache.Usage{Layer: d, Refs: []string{ref}, State: state,
				Size: size / 3, Unpacked: size, Present: present, Disk: present, InUse: i%3 > 0})
		}
	}
	for i := range 20 {
		s.Starts = append(s.Starts, start(20-i, now.Add(-time.Duration(i)*time.Minute)))
	}
	s.Replays = []fs.ReplayStatus{{Manifest: s.Starts[0].Manifest, Brought: 23e6, Read: 21e6,
		Missed: 4, Began: s.Starts[0].Began.Add(50 * time.Millisecond)}}
	return s
}

// start is a start with 30 requests and 20 reads that waited.
func start(id int, began time.Time) admin.Start {
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	x := admin.Start{
		ID: id, Ref: fmt.Sprintf("registry.example.com/team-%d/service-%d:1.%d.0", id%7, id, id),
		Manifest: digest.FromString(fmt.Sprint(id)), Began: began,
		Container: fmt.Sprintf("service-%d-7c9f8d-x2k4p/app", id),
		Pulled:    at(310), Created: at(380), Ready: at(1240),
	}
	add := func(kind, what string, sent, first, last int, bytes int64) {
		x.Lines = append(x.Lines, admin.Line{Kind: kind, What: what, Host: "registry.example.com",
			Sent: at(sent), First: at(first), Last: at(last), Bytes: bytes, Status: 206, Over: true})
	}
	add(admin.KindToken, "token", 0, 40, 41, 2100)
	add(admin.KindLookup, "referrers/"+digest.FromString("m").String(), 42, 80, 82, 1900)
	add(admin.KindBeside, "blobs/"+digest.FromString("index").String(), 84, 120, 190, 1_200_000)
	for i := range 27 {
		add(admin.KindLayer, "blobs/"+digest.FromString(fmt.Sprint(id, i%6)).String(), 120+30*i,
			160+32*i, 190+40*i, int64(200_000+i*60_000))
	}
	for i := range 20 {
		add(admin.KindRead, digest.FromString(fmt.Sprint(id, i%6)).String(), 420+35*i, 470+40*i,
			470+40*i, 131072)
		x.Lines[len(x.Lines)-1].Range = fmt.Sprintf("%d-%d", i*1_000_000, i*1_000_000+131071)
	}
	return x
}

// TestBrowser: with 1,000 layers the page loads at once and without errors, follows the node, and
// all of it can be reached by the keyboard.
func TestBrowser(t *testing.T) {
	ctx := fixture.Context(t)
	var received atomic.Uint64
	server := httptest.NewServer(shown.New(func(context.Context) shown.State {
		return crowded(received.Load())
	}))
	t.Cleanup(server.CloseClientConnections) // pages follow it
	b, err := Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	best := loadMost * 10
	for range 10 { // others may have the processors
		must(b.Go(ctx, server.URL))
		var at struct{ ResponseEnd, DomInteractive, LoadEventEnd float64 }
		must(b.Run(ctx, "return performance.getEntriesByType('navigation')[0]", &at))
		t.Logf("the page with %d layers: here after %.0f ms, read after %.0f, loaded after %.0f",
			images*layers, at.ResponseEnd, at.DomInteractive, at.LoadEventEnd)
		best = min(best, time.Duration(at.LoadEventEnd*1e6))
	}
	if best > loadMost {
		t.Errorf("the page loads in %v at best, want %v", best, loadMost)
	}
	live(t, ctx, b, &received)
	keyboard(t, ctx, b)
	lines, err := b.Log(ctx)
	must(err)
	for _, l := range lines {
		t.Errorf("the browser's log: %s", l)
	}
	draw(t, ctx, b, server.URL)
}

// live changes the node, and looks whether the page follows without losing what is open and
// focused.
func live(t *testing.T, ctx context.Context, b *Browser, received *atomic.Uint64) {
	t.Helper()
	run := func(script string) (ok bool) {
		t.Helper()
		if err := b.Run(ctx, script, &ok); err != nil {
			t.Fatal(err)
		}
		return ok
	}
	run(`const d = document.querySelectorAll('#images details')[7]; d.open = true;
		d.querySelector('summary').focus(); window.node = d;
		document.querySelectorAll('#starts > details')[3].open = true; return true`)
	received.Store(1e12)
	fixture.Eventually(t, 10*time.Second, func() string {
		if !run(`return document.getElementById('glance').textContent.includes('1.0 TB')`) {
			return "the page shows an old number"
		}
		return ""
	})
	if !run(`const d = document.querySelectorAll('#images details')[7]; return d.open &&
		d === window.node && document.activeElement === d.querySelector('summary')`) {
		t.Error("what was open and focused is not any more")
	}
	if !run(`return document.querySelectorAll('#starts > details').length === 20 &&
		document.querySelectorAll('#images details').length === 50 &&
		document.getElementById('live').textContent === 'live' &&
		document.querySelectorAll('#images details[open] tbody tr').length === 20 &&
		document.querySelectorAll('#starts svg').length === 2`) {
		t.Error("after an event something is missing, or there twice")
	}
}

// keyboard presses Tab until all that can be operated was focused.
func keyboard(t *testing.T, ctx context.Context, b *Browser) {
	t.Helper()
	const tab = "\ue004"
	var want, got int
	script := `document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus();
		window.reached = new Set();
		document.addEventListener('focusin', (e) => window.reached.add(e.target));
		return [...document.querySelectorAll('a, summary, .scroll')].filter(
			(e) => e.checkVisibility()).length`
	if err := b.Run(ctx, script, &want); err != nil {
		t.Fatal(err)
	}
	for range want {
		if err := b.Press(ctx, tab); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Run(ctx, "return window.reached.size", &got); err != nil {
		t.Fatal(err)
	}
	if got != want || want < 70 {
		t.Errorf("the keyboard reaches %d of %d", got, want)
	}
	var unnamed []string
	if err := b.Run(ctx, `return [...document.querySelectorAll('table')].filter(
		(e) => !e.caption).concat([...document.querySelectorAll('svg, [role=region]')].filter(
		(e) => !e.getAttribute('aria-label'))).map((e) => e.outerHTML.slice(0, 100))`,
		&unnamed); err != nil || len(unnamed) > 0 {
		t.Errorf("without a name for who does not see: %v, %v", unnamed, err)
	}
}

// draw takes pictures of the page, if somebody wants to look at them.
func draw(t *testing.T, ctx context.Context, b *Browser, url string) {
	t.Helper()
	if *pictures == "" {
		return
	}
	for _, p := range []struct {
		name, scheme  string
		width, height int
		scroll        string
	}{
		{"light", "light", 1240, 1500, ""}, {"dark", "dark", 1240, 1500, ""},
		{"narrow", "light", 400, 1400, ""}, {"narrow-dark", "dark", 400, 1400, "images"},
		{"images", "light", 1240, 1200, "images"}, {"problems", "dark", 1240, 700, "problems"},
	} {
		err := b.Command(ctx, "Emulation.setEmulatedMedia", map[string]any{"features": []any{
			map[string]string{"name": "prefers-color-scheme", "value": p.scheme}}})
		if err == nil {
			err = b.Command(ctx, "Emulation.setDeviceMetricsOverride", map[string]any{
				"width": p.width, "height": p.height, "deviceScaleFactor": 1, "mobile": false})
		}
		if err == nil {
			err = b.Go(ctx, url+"/#"+p.scroll)
		}
		var png []byte
		if err == nil {
			png, err = b.Picture(ctx)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(*pictures, p.name+".png"), png, 0o644)
		}
		if err != nil {
			t.Errorf("picture %s: %v", p.name, err)
		}
	}
}
