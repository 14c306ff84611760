package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// spans are what a collector has received, by the service that they are of.
type spans struct {
	mu  sync.Mutex
	all map[string][]*tracepb.Span
}

// ServeHTTP is OTLP over HTTP.
func (s *spans) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	var sent collector.ExportTraceServiceRequest
	b, err := io.ReadAll(q.Body)
	if err == nil {
		err = proto.Unmarshal(b, &sent)
	}
	if err != nil || q.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprint(q.URL, err), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range sent.ResourceSpans {
		service := ""
		for _, a := range r.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range r.ScopeSpans {
			s.all[service] = append(s.all[service], scope.Spans...)
		}
	}
}

// missing says what is not as it should be so far.
func (s *spans) missing() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := map[string]string{} // names of spans, of both
	traces := map[string]bool{}
	for _, span := range s.all["containerd"] {
		traces[string(span.TraceId)] = true
		of[string(span.SpanId)] = span.Name
	}
	for _, span := range s.all["micad"] {
		of[string(span.SpanId)] = span.Name
	}
	const calls = "containerd.services.snapshots.v1.Snapshots/"
	want := []string{calls + "Prepare below " + calls + "Prepare",
		"asked for referrers below " + calls + "Prepare", "read waited below " + calls + "Mounts"}
	for _, span := range s.all["micad"] {
		if !traces[string(span.TraceId)] {
			return fmt.Errorf("%s is in no trace of containerd's", span.Name)
		}
		got := span.Name + " below " + of[string(span.ParentSpanId)]
		want = slices.DeleteFunc(want, func(w string) bool { return w == got })
		took := time.Duration(span.EndTimeUnixNano - span.StartTimeUnixNano)
		if strings.HasPrefix(got, "read") && (took < time.Millisecond || took > time.Minute) {
			return fmt.Errorf("a read waited for %v", took)
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("there is no span %q", want)
	}
	return nil
}

// TestTraces: micad's calls, look-ups and reads that wait are in containerd's traces.
func TestTraces(t *testing.T) {
	received := &spans{all: map[string][]*tracepb.Span{}}
	server := httptest.NewServer(received)
	t.Cleanup(server.Close)
	r, ref, _ := debian(t, true)
	r.SetProfile(shaper.Profile{RTT: 5 * time.Millisecond, Rate: 100e6})
	n := fixture.Node(t, node.Options{DemandOnly: true, Traces: server.URL})
	fixture.Pull(t, n, mica, ref)
	fixture.Run(t, n, mica, ref, "traced", "ls", "/usr/bin")
	err := received.missing()
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
		err = received.missing()
	}
	if err != nil {
		received.mu.Lock()
		defer received.mu.Unlock()
		for service, list := range received.all {
			for _, s := range list {
				t.Logf("%s: %s, trace %x, span %x below %x", service, s.Name, s.TraceId[:4],
					s.SpanId, s.ParentSpanId)
			}
		}
		t.Error(err)
	}
}
