package page

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/cache"
)

// evil is what an image may call itself, or a registry say.
const evil = `<script>alert(1)</script>"'&`

// state is a node with an image, a start and a problem, whose names are evil.
func state() State {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	layer := digest.FromString("layer")
	at := func(s float64) time.Time { return began.Add(time.Duration(s * 1e9)) }
	return State{
		Now: at(60), Node: evil, Name: func(key string) string { return key },
		Info:   admin.Info{Version: "1", Started: began},
		Layers: []fs.Status{{Layer: layer, Ref: evil, State: "lazy", LastError: evil, Total: 10}},
		Cache:  cache.Status{Used: 5e9, Quota: 20e9, Fault: "no space left on device"},
		Usage: []cache.Usage{{Layer: layer, Refs: []string{evil}, State: "lazy", Present: 3,
			Unpacked: 10, InUse: true}},
		Users: map[string][]string{evil: {evil}},
		Starts: []admin.Start{{
			ID: 7, Ref: evil, Manifest: layer, Container: evil, Began: began, Pulled: at(0.5),
			Created: at(0.6), Ready: at(1.25), Lines: []admin.Line{
				{Kind: admin.KindLookup, What: "referrers/" + evil, Host: evil, Sent: at(0.1),
					First: at(0.2), Last: at(0.2), Bytes: 900, Status: 200, Over: true},
				{Kind: admin.KindRead, What: layer.String(), Range: "0-4095", Sent: at(1),
					First: at(1.25), Last: at(1.25), Bytes: 4096, Over: true},
				{Kind: admin.KindRead, What: layer.String(), Range: "4096-8191", Sent: at(1.1),
					First: at(1.2), Last: at(1.2), Bytes: 4096, Over: true},
				{Kind: admin.KindLayer, What: "blobs/" + layer.String(), Sent: at(2), Error: evil},
			},
		}},
		Replays: []fs.ReplayStatus{{Manifest: layer, Began: at(0.3), Brought: 2e6, Read: 1e6,
			Missed: 4}},
		Fallbacks: []admin.Fallback{{Ref: evil, Layer: layer.String(), Reason: "zstd"}},
		Problems:  []Problem{{What: evil, Count: 3, First: began, Last: began, Do: evil}},
	}
}

func get(t *testing.T, h http.Handler, method, path, host string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	r.Host = host
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestPage: the page says what it is for, escapes what is foreign, and allows its own style and
// script alone.
func TestPage(t *testing.T) {
	h := New(func(context.Context) State { return state() })
	r := get(t, h, http.MethodGet, "/", "node")
	html := r.Body.String()
	for _, want := range []string{
		"5.0 GB", "of 20.0 GB", "ready after 1.25 s", "Pulled in 0.50 s", "2 reads waited, 0.35 s",
		"2 reads: sent 1.000 s, first byte 1.250 s, last 1.250 s, 8.2 kB",
		"brought 2.0 MB, of which 1.0 MB was read;\n4 reads waited for something else",
		"1 requests were sent after that", "1 lazy", "3 times since", "gc --unused",
		"is not lazy: containerd pulled", "<svg", "<caption>",
	} {
		if !strings.Contains(html, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if strings.Contains(html, "<script>alert") || strings.Count(html, "alert(1)") < 8 {
		t.Error("foreign names are not escaped, or not there")
	}
	for id, want := range map[string]string{
		"start-7": "<svg", "image-" + digest.FromString(evil).Encoded()[:12]: "<td>lazy",
	} {
		text := get(t, h, http.MethodGet, "/part/"+id, "node").Body.String()
		if !strings.Contains(text, want) || strings.Contains(text, "<script") {
			t.Errorf("part %s: %s", id, text)
		}
	}
	if got := get(t, h, http.MethodGet, "/part/start-8", "node").Code; got != 404 {
		t.Errorf("a part that is not there: %d", got)
	}
	csp := r.Header().Get("Content-Security-Policy")
	for _, tag := range []string{"style", "script"} {
		text := between(html, "<"+tag+">", "</"+tag+">")
		if len(text) < 500 || !strings.Contains(csp, tag+"-src '"+hash(text)+"'") {
			t.Errorf("the policy %q does not allow the %s", csp, tag)
		}
	}
	if strings.Contains(html, " style=") || strings.Contains(html, "onclick") ||
		strings.Contains(html, "http://") {
		t.Error("the page has inline styles, handlers, or names another host")
	}
	if !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy %q", csp)
	}
	for path, want := range map[string]int{"/": 405, "/events": 405, "/v1/gc": 404} {
		if got := get(t, h, http.MethodPost, path, "node").Code; got != want {
			t.Errorf("POST %s: %d, want %d", path, got, want)
		}
	}
}

// TestGuard: names that lead here by DNS alone are refused.
func TestGuard(t *testing.T) {
	h := Guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), "node.test")
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{
		"127.0.0.1:9621": 200, "[::1]:9621": 200, "[::1]": 200, "10.0.0.7": 200, "localhost:1": 200,
		"NODE.test:9621": 200, name: 200, "evil.test": 421, "evil.test:9621": 421, "": 421,
		"127.0.0.1.evil.test": 421,
	} {
		if got := get(t, h, http.MethodGet, "/", host).Code; got != want {
			t.Errorf("host %q: %d, want %d", host, got, want)
		}
	}
}

// TestEvents: a section is sent when a page opens, and again when it has changed.
func TestEvents(t *testing.T) {
	n := 0
	server := httptest.NewServer(New(func(context.Context) State {
		s := state()
		n++
		s.Received = uint64(n) * 1e6
		return s
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got []string
	text := ""
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for len(got) < 5 && lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			got = append(got, name)
		}
		text += lines.Text()
	}
	if fmt.Sprint(got) != "[glance starts problems images glance]" {
		t.Errorf("events %v", got)
	}
	if resp.Header.Get("Content-Type") != "text/event-stream" || strings.Contains(text, "<script") {
		t.Errorf("%s: %s", resp.Header.Get("Content-Type"), text)
	}
}

// TestProblems: the log's warnings are kept, one that comes again once, and each that is known has
// something to do, which docs/troubleshooting.md has a section of.
func TestProblems(t *testing.T) {
	var p Problems
	log := slog.New(p.Handler(slog.DiscardHandler))
	log.Info("fine")
	for i := range 3 {
		log.With("ref", "a").Warn("pull", "err", errors.New("dial tcp: no"), "took", time.Duration(i))
	}
	log.Error("panic", "panic", "x", "stack", "y")
	got := p.Latest()
	if len(got) != 2 || got[1].Count != 3 || got[1].What != "pull, ref: a, err: dial tcp: no" ||
		!strings.HasPrefix(got[1].Do, "Look at the registry") || got[0].What != "panic, panic: x" {
		t.Errorf("problems %+v", got)
	}
	for i := range 2 * maxProblems {
		log.Error(fmt.Sprint(i))
	}
	if got = p.Latest(); len(got) != maxProblems || got[0].What != fmt.Sprint(2*maxProblems-1) {
		t.Errorf("%d problems, the last %+v", len(got), got[0])
	}
	doc, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range advice {
		if !strings.Contains(string(doc), "\n## "+a.section+"\n") {
			t.Errorf("%q: docs/troubleshooting.md has no section %q", a.word, a.section)
		}
		if a.word != strings.ToLower(a.word) {
			t.Errorf("%q never fits", a.word)
		}
	}
}
