package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
)

const (
	startTime   = 2 * time.Minute  // for how long what happens belongs to a call
	earlyTime   = 30 * time.Second // for how long what happens waits for a call
	maxSubjects = 4096
	maxEarly    = 64                     // of a subject
	flushTime   = 500 * time.Millisecond // for how long micad's end waits for the collector
)

// traces sends spans to a collector: each call that containerd makes in a trace of its own, and
// what belongs to a call. That is what micad logs of an image (ref) or a layer with the time that
// it took: look-ups belong to the latest call for a layer of the image, reads that waited to the
// latest call for a container on the layer. No trace begins here. nil: nothing is sent.
type traces struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer

	mu       sync.Mutex
	subjects map[string]*subject // by an image's reference or a layer's digest
}

// subject is an image or a layer.
type subject struct {
	call  trace.SpanContext // the latest
	since time.Time         // of call
	early []event           // an image's, from before its call
}

// event is something that is over.
type event struct {
	name       string
	begin, end time.Time
	attributes []attribute.KeyValue
	failed     string // "": it did not
}

// openTraces opens what the environment variables say that containerd goes by too.
func openTraces(ctx context.Context, log *slog.Logger) (*traces, error) {
	endpoint := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
		os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"))
	if endpoint == "" || os.Getenv("OTEL_SDK_DISABLED") == "true" ||
		cmp.Or(os.Getenv("OTEL_TRACES_EXPORTER"), "otlp") != "otlp" {
		return nil, nil
	}
	var client otlptrace.Client
	switch protocol := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
		os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")); protocol {
	case "", "http/protobuf":
		client = otlptracehttp.NewClient()
	case "grpc":
		client = otlptracegrpc.NewClient()
	default:
		return nil, fmt.Errorf(`OTEL_EXPORTER_OTLP_PROTOCOL=%s: use "http/protobuf" or "grpc"`,
			protocol)
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("open traces: %w", err)
	}
	about, err := resource.Merge(resource.NewSchemaless(
		attribute.String("service.name", "micad"), attribute.String("service.version", version)),
		resource.Environment())
	if err != nil {
		return nil, fmt.Errorf("open traces: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Warn("traces are not sent: does the collector answer?", "err", err)
	}))
	p := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about),
		sdk.WithSampler(sdk.ParentBased(sdk.NeverSample())))
	return &traces{provider: p, tracer: p.Tracer("micad"), subjects: map[string]*subject{}}, nil
}

// close sends what is not sent yet. Readers wait for the next micad meanwhile, so it is short.
func (t *traces) close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// traced is what makes calls of a server spans.
func (d *daemon) traced() []grpc.ServerOption {
	if d.traces == nil {
		return nil
	}
	return []grpc.ServerOption{
		grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(d.traces.provider),
			otelgrpc.WithPropagators(propagation.TraceContext{}))),
		grpc.ChainUnaryInterceptor(d.join),
	}
}

// join notes which images and layers a call is about.
func (d *daemon) join(
	ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	under := ""
	switch q := req.(type) {
	case *snapshotsapi.PrepareSnapshotRequest:
		if q.Labels[snapshots.LabelSnapshotRef] != "" {
			d.traces.join(ctx, q.Labels[snapshotters.TargetRefLabel])
		} else {
			under = q.Parent
		}
	case *snapshotsapi.MountsRequest:
		under = q.Key
	}
	if under != "" {
		if layers, err := d.snapshotter.LayersUnder(ctx, under); err == nil {
			for _, layer := range layers {
				d.traces.join(ctx, layer.String())
			}
		}
	}
	return next(ctx, req)
}

// join says that what happens to an image or a layer belongs to a call from now on.
func (t *traces) join(ctx context.Context, name string) {
	if name == "" {
		return
	}
	call, now := trace.SpanContextFromContext(ctx), time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.subjectLocked(name)
	for _, e := range s.early {
		if now.Sub(e.end) < earlyTime {
			t.send(call, e)
		}
	}
	*s = subject{call: call, since: now}
}

// happened sends an event of an image or a layer, or keeps it for the call of the image's pull that
// follows: look-ups begin before it.
func (t *traces) happened(ref, layer string, e event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.subjectLocked(cmp.Or(ref, layer))
	switch {
	case s.call.IsValid() && time.Since(s.since) < startTime:
		t.send(s.call, e)
	case ref != "":
		early := append(s.early, e)
		*s = subject{early: early[max(0, len(early)-maxEarly):]}
	}
}

func (t *traces) subjectLocked(name string) *subject {
	if t.subjects[name] == nil {
		if len(t.subjects) >= maxSubjects {
			clear(t.subjects) // some spans less, once in a long while
		}
		t.subjects[name] = &subject{}
	}
	return t.subjects[name]
}

// send sends what belongs to a call, if that is in a trace that somebody wants.
func (t *traces) send(call trace.SpanContext, e event) {
	ctx := trace.ContextWithSpanContext(context.Background(), call)
	_, span := t.tracer.Start(ctx, e.name, trace.WithTimestamp(e.begin),
		trace.WithAttributes(e.attributes...))
	if e.failed != "" {
		span.SetStatus(codes.Error, e.failed)
	}
	span.End(trace.WithTimestamp(e.end))
}

// handler returns a log's handler that has events made of its records.
func (t *traces) handler(h slog.Handler) slog.Handler {
	if t == nil {
		return h
	}
	return events{Handler: h, traces: t}
}

// events is a log's handler that makes events of records.
type events struct {
	slog.Handler
	traces *traces
	layer  string // of its logger
}

// Enabled says that every record is wanted, whatever the log's own level.
func (h events) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (h events) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "layer" {
			h.layer = a.Value.String()
		}
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

// Handle implements slog.Handler.
func (h events) Handle(ctx context.Context, r slog.Record) error {
	e, ref, layer := event{name: r.Message, begin: r.Time, end: r.Time}, "", h.layer
	if layer != "" {
		e.attributes = append(e.attributes, attribute.String("layer", layer))
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "took" && a.Value.Kind() == slog.KindDuration {
			e.begin = e.end.Add(-a.Value.Duration())
			return true
		}
		switch a.Key {
		case "ref":
			ref = a.Value.String()
		case "layer":
			layer = a.Value.String()
		case "err":
			e.failed = a.Value.String()
		}
		e.attributes = append(e.attributes, attribute.String(a.Key, a.Value.String()))
		return true
	})
	if e.begin != e.end && cmp.Or(ref, layer) != "" {
		h.traces.happened(ref, layer, e)
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}
