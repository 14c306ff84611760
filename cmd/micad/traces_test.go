package main

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// TestTraces: what is logged with its time is a span below the call that it belongs to, of the
// length that it took, and the log is what it was.
func TestTraces(t *testing.T) {
	sent := tracetest.NewInMemoryExporter()
	p := sdk.NewTracerProvider(sdk.WithSyncer(sent),
		sdk.WithSampler(sdk.ParentBased(sdk.NeverSample())))
	tr := &traces{provider: p, tracer: p.Tracer(""), subjects: map[string]*subject{}}
	var text bytes.Buffer
	log := slog.New(tr.handler(slog.NewTextHandler(&text, nil)))
	call := func(id byte, flags trace.TraceFlags, names ...string) {
		ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{id}, SpanID: trace.SpanID{id}, TraceFlags: flags}))
		for _, name := range names {
			tr.join(ctx, name)
		}
	}
	took := slog.Duration("took", 5*time.Millisecond)
	layer := log.With("layer", "sha256:1")

	layer.Debug("of nobody", took)
	log.Debug("early", "ref", "image", took)
	call(1, trace.FlagsSampled, "image", "sha256:1")
	layer.Debug("waited", took)
	layer.Debug("without its time")
	log.Debug("of another", "layer", "sha256:2", took)
	call(2, 0, "sha256:1") // nobody traces this one
	layer.Debug("of nobody either", took)
	call(3, trace.FlagsSampled, "sha256:1")
	layer.Warn("failed", took, "err", "gone")
	tr.subjects["sha256:1"].since = time.Now().Add(-2 * startTime)
	layer.Debug("late", took)
	var got []string
	for _, s := range sent.GetSpans() {
		if d := s.EndTime.Sub(s.StartTime); d != 5*time.Millisecond {
			t.Errorf("%s took %v", s.Name, d)
		}
		got = append(got, s.Name+" "+s.Parent.SpanID().String()[:2]+s.Status.Description)
	}
	if want := []string{"early 01", "waited 01", "failed 03gone"}; !slices.Equal(got, want) {
		t.Errorf("spans %q, want %q", got, want)
	}
	tr.close(t.Context())
	n := strings.Count(text.String(), "\n")
	if n != 1 || !strings.Contains(text.String(), "sha256:1") {
		t.Errorf("the log:\n%s", &text)
	}
}

// TestTracesAreAsked: without a collector, or where the environment says so, there are no traces,
// and calls and log are as they are.
func TestTracesAreAsked(t *testing.T) {
	none := func(env ...string) {
		t.Helper()
		for i := 0; i < len(env); i += 2 {
			t.Setenv(env[i], env[i+1])
		}
		tr, err := openTraces(t.Context(), slog.New(slog.DiscardHandler))
		if tr != nil || err != nil {
			t.Errorf("%q: %v, %v", env, tr, err)
		}
	}
	for _, name := range []string{"EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TRACES_ENDPOINT",
		"EXPORTER_OTLP_PROTOCOL", "EXPORTER_OTLP_TRACES_PROTOCOL", "SDK_DISABLED",
		"TRACES_EXPORTER"} {
		t.Setenv("OTEL_"+name, "")
	}
	none()
	none("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1", "OTEL_SDK_DISABLED", "true")
	none("OTEL_SDK_DISABLED", "", "OTEL_TRACES_EXPORTER", "none")
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke signals")
	if _, err := openTraces(t.Context(), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("there is no such protocol")
	}
	for _, protocol := range []string{"", "grpc"} {
		t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
		tr, err := openTraces(t.Context(), slog.New(slog.DiscardHandler))
		if tr == nil || err != nil {
			t.Fatal(tr, err)
		}
		tr.close(t.Context())
	}
	var off *traces
	h := slog.DiscardHandler
	if off.close(t.Context()); off.handler(h) != h || (&daemon{}).traced() != nil {
		t.Error("traces that are not asked for are there")
	}
}
