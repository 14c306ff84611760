package main

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

func TestMiddle(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 5},
		5}, {[]float64{4, 3, 2, 1}, 2.5}} {
		if got := middle(tt.in); got != tt.want {
			t.Errorf("middle(%v) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestFieldsAreAllMetrics(t *testing.T) {
	var m metrics
	for i, f := range m.fields() {
		*f = float64(i + 1)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]float64
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	seen := map[float64]bool{}
	for name, v := range got {
		if v == 0 || seen[v] {
			t.Errorf("%s is not among the fields", name)
		}
		seen[v] = true
	}
	if len(seen) != len(m.fields()) {
		t.Errorf("%d fields for %d metrics", len(m.fields()), len(seen))
	}
}

func started(way string, total, strangers float64) start {
	return start{subject: subject{"hello", "region", way},
		metrics: metrics{Pull: total / 2, Total: total, Strangers: strangers}}
}

// Medians leave out disturbed runs where there are others, and failed ones
// always; ratios are those of the totals.
func TestSummarise(t *testing.T) {
	p, err := flags{workloads: "hello", networks: "region",
		ways: "overlayfs,mica-profile,mica-read"}.plan()
	if err != nil {
		t.Fatal(err)
	}
	r := &results{Images: []imageInfo{{Workload: "hello", Profile: 12_500_000}}} // 0.1 s at 125 MB/s
	r.Starts = []start{
		started(overlayfs, 2, 0), started(overlayfs, 9, 0.5), started(overlayfs, 4, 0.05),
		started(again, 0.27, 0.2), // all there is
		started(micaProfile, 0.6, 0),
		{subject: subject{"hello", "region", micaProfile}, Error: "broken"},
	}
	r.summarise(p)
	if len(r.Medians) != 3 {
		t.Fatalf("medians %+v", r.Medians)
	}
	full, b, mica := r.Medians[0], r.Medians[1], r.Medians[2]
	if full.Total != 3 || full.Pull != 1.5 || full.Runs != 2 || full.OfOverlayfs != 1 ||
		full.OfB != 7.5 {
		t.Errorf("overlayfs %+v", full)
	}
	if b.Way != again || b.Runs != 1 || b.Strangers != 0.2 {
		t.Errorf("again %+v", b)
	}
	// B = 0.27 + 3 × 0.01 + 0.1
	if mica.B != 0.4 || mica.OfB != 1.5 || mica.OfOverlayfs != 0.2 || mica.Failed != 1 {
		t.Errorf("mica %+v", mica)
	}
	var out strings.Builder
	r.table(&out, p)
	for _, want := range []string{"hello", "1 (1 failed)", "7.50", "0.20", "missed by 1 of 1"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

// Every way that is compared with another exists.
func TestNamesExist(t *testing.T) {
	for _, list := range []string{overlayfs, micaProfile, overlayfsRead, micaRead, "mica"} {
		if _, err := chosen(ways, way.id, list); err != nil {
			t.Error(err)
		}
	}
	if _, err := chosen(workloads, workload.id, filesImage); err != nil {
		t.Error(err)
	}
	if got, err := chosen(networks, network.id, "rack,region"); err != nil || len(got) != 2 ||
		got[0].name != "region" {
		t.Errorf("chosen %v, %v", got, err)
	}
	if _, err := chosen(networks, network.id, "rack,moon"); err == nil ||
		!strings.Contains(err.Error(), "moon") {
		t.Errorf("chose the moon: %v", err)
	}
}

func TestBound(t *testing.T) {
	got := bound(0.25, shaper.Profile{RTT: 10 * time.Millisecond, Rate: 125e6}, 25e6)
	if want := 0.25 + 0.03 + 0.2; math.Abs(got-want) > 1e-9 {
		t.Errorf("bound %v, want %v", got, want)
	}
}

// A span is counted once, however many ranges touch it.
func TestTouched(t *testing.T) {
	spans := index.Spans{{Device: 0, Size: 100, BlobSize: 1},
		{Device: 100, Size: 100, BlobSize: 10}, {Device: 200, Size: 100, BlobSize: 100}}
	for _, tt := range []struct {
		ranges []profile.Range
		want   int64
	}{
		{nil, 0},
		{[]profile.Range{{Off: 0, Size: 100}}, 1},
		{[]profile.Range{{Off: 99, Size: 2}}, 11},
		{[]profile.Range{{Off: 250, Size: 50}, {Off: 120, Size: 1}, {Off: 130, Size: 80}}, 110},
		{[]profile.Range{{Off: 50, Size: 1000}}, 111},
	} {
		if got := touched(spans, tt.ranges); got != tt.want {
			t.Errorf("touched(%v) = %d, want %d", tt.ranges, got, tt.want)
		}
	}
}

// A program is ready with its last line, however its output is cut.
func TestProgram(t *testing.T) {
	p := &program{isReady: make(chan struct{})}
	for i, part := range []string{"star", "ted\nread", "y: no\nre", "ady\n"} {
		if _, err := p.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
		if p.started.IsZero() != (i < 1) || p.ready.IsZero() != (i < 3) {
			t.Errorf("after %q: started %v, ready %v", p.output(), p.started, p.ready)
		}
	}
	<-p.isReady
}

// micad answers as one whose layers become local one after the other.
func TestWhenLocal(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "m.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0 // requests come one after the other
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls++
		list := []fs.Status{{Mode: fs.EROFS, Present: int64(calls), Total: 3}, {Mode: fs.Local}}
		if calls == 3 {
			list[0].Mode = fs.Local
		}
		if err := json.NewEncoder(w).Encode(list[:min(calls, 2)]); err != nil {
			t.Error(err)
		}
	})}
	done := make(chan error)
	go func() { done <- server.Serve(l) }()
	at, err := whenLocal(t.Context(), admin.NewClient(socket), 2)
	if err != nil || at.IsZero() || calls != 3 {
		t.Errorf("local at %v after %d calls, %v", at, calls, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := whenLocal(ctx, admin.NewClient(socket), 5); err == nil {
		t.Error("layers that are missing are local")
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestProcess(t *testing.T) {
	pid := os.Getpid()
	before, err := cpu(pid)
	if err != nil {
		t.Fatal(err)
	}
	const work = 100 * time.Millisecond
	deadline := time.Now().Add(20 * time.Second)
	after := before
	for after-before < work && time.Now().Before(deadline) {
		if after, err = cpu(pid); err != nil {
			t.Fatal(err)
		}
	}
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	// the children that were waited for are none here
	if real := time.Duration(used.Utime.Nano() + used.Stime.Nano()); after-before < work ||
		after > real+work || after < real-work {
		t.Errorf("CPU time %v, before %v, want about %v", after, before, real)
	}
	if n, err := peak(pid); err != nil || n < 1<<20 || n > 1<<34 {
		t.Errorf("peak %d bytes, %v", n, err)
	}
}

// The waterfall's times count from the pull's begin, and what is drawn ends when the program is
// ready.
func TestWaterfall(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	m := moments{begin: begin, pulled: at(100), created: at(150), started: at(200), ready: at(500)}
	w := newWaterfall(subject{"node", "region", "mica"}, m, []registry.Timed{
		{Request: registry.Request{Method: "GET", Path: "/v2/a/manifests/1", Status: 404},
			Sent: at(10), First: at(20), Last: at(20)},
		{Request: registry.Request{Method: "GET", Path: "/v2/a/blobs/sha256:0123456789abcdef", Range: "bytes=0-9", Status: 206, Bytes: 10}, Sent: at(400), First: at(450), Last: at(900)},
		{Request: registry.Request{Method: "GET", Path: "/v2/a/blobs/sha256:ff", Status: 200},
			Sent: at(600), First: at(610), Last: at(620)},
	})
	if w.Local != 0 || w.Ready != 0.5 || w.Requests[1].Last != 0.9 {
		t.Errorf("waterfall %+v", w)
	}
	log := "time=2026-01-02T03:04:05.300Z level=DEBUG msg=\"read waited\" layer=sha256:00112233445566778899 off=512 bytes=4096 took=250ms\n" +
		"time=2026-01-02T03:04:05.300Z level=INFO msg=\"layer mounted\"\n"
	waits, err := readWaits(strings.NewReader(log), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil || len(waits) != 1 || math.Abs(waits[0].Begin-0.05) > 1e-9 ||
		waits[0].Off != 512 {
		t.Fatalf("waits %+v, %v", waits, err)
	}
	w.Waits = waits
	f := w.figure()
	if len(f.Requests) != 3 || f.Requests[1].Kind != "read that waits" ||
		f.Requests[1].Label != "read 001122334455 512+4096" {
		t.Fatalf("drawn %+v", f.Requests)
	}
	f.Requests = slices.Delete(f.Requests, 1, 2)
	if f.Requests[1].Last != 0.5 {
		t.Fatalf("drawn %+v", f.Requests)
	}
	for i, want := range []struct{ label, kind string }{{"GET 1 (404)", "manifest"},
		{"GET 0123456789ab 0-9", "range of a blob"}} {
		if got := f.Requests[i]; got.Label != want.label || got.Kind != want.kind {
			t.Errorf("request %d is %+v, want %v", i, got, want)
		}
	}
}
