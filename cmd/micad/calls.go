package main

import (
	"context"
	"runtime/debug"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	limits "github.com/containerd/containerd/v2/defaults"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// server answers containerd's calls of a snapshotter.
func (d *daemon) server(s snapshots.Snapshotter, more ...grpc.ServerOption) *grpc.Server {
	server := grpc.NewServer(append(append(more, d.traced()...),
		grpc.UnaryInterceptor(d.survive), grpc.StreamInterceptor(d.surviveStream),
		grpc.MaxRecvMsgSize(limits.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(limits.DefaultMaxSendMsgSize))...)
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	return server
}

// survive makes a panic the error of the call that met it.
func (d *daemon) survive(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (answer any, err error) {
	defer d.recovered(ctx, info.FullMethod, &err)
	return next(ctx, req)
}

// surviveStream is survive for calls that are streams.
func (d *daemon) surviveStream(
	srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler,
) (err error) {
	defer d.recovered(stream.Context(), info.FullMethod, &err)
	return next(srv, stream)
}

// recovered is deferred by a call.
func (d *daemon) recovered(ctx context.Context, call string, err *error) {
	if v := recover(); v != nil {
		d.panics.Add(1)
		d.log.ErrorContext(ctx, "panic in a call", "call", call, "panic", v,
			"stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "panic in %s: %v (micad's log has more)", call, v)
	}
}
