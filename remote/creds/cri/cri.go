// Package cri learns the credentials of pulls from the kubelet.
//
// containerd does not hand a snapshotter the credentials that a pull came with, and they are
// nowhere else on the node: image pull secrets reach it with the kubelet's request to pull and are
// forgotten after it. So Images stands between the two: it is a CRI image service that hands every
// call to containerd as it is, and keeps, on the way, what a PullImage authenticates with.
//
//	kubelet (imageServiceEndpoint) ── Images ── containerd
//	                                    └─ Keeper
//
// Messages pass through byte by byte, whatever their version knows; of a PullImageRequest alone a
// few fields are read. Concurrency: as gRPC's, a goroutine of the server's for each call.
package cri

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"

	"github.com/distribution/reference"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mica-snapshotter/mica/remote/creds"
)

const (
	service = "/runtime.v1.ImageService/"
	pull    = service + "PullImage"

	maxMessage = 16 << 20 // bytes, as the kubelet allows: a list of images may be long
)

// Keeper is what Images needs of a *creds.Kept. Parallel calls are made.
type Keeper interface {
	// Keep keeps a credential for a repository, at server only unless that is empty. added: it was
	// not there before.
	Keep(repository, server string, c creds.Credential) (added bool, err error)
	// Drop forgets it.
	Drop(repository, server string, c creds.Credential) error
}

// Images is a CRI image service in front of containerd's.
type Images struct {
	conn   *grpc.ClientConn
	keeper Keeper
	log    *slog.Logger
}

// New returns the image service in front of the one at a socket's path; k may be nil: then nothing
// is kept. It connects at the first call.
func New(socket string, k Keeper, log *slog.Logger) (*Images, error) {
	target := url.URL{Scheme: "unix", Path: socket}
	conn, err := grpc.NewClient(target.String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage),
			grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("image service at %s: %w", socket, err)
	}
	return &Images{conn: conn, keeper: k, log: log}, nil
}

// Close ends the connection to containerd.
func (p *Images) Close() error { return p.conn.Close() }

// Handle is for grpc.UnknownServiceHandler: it answers the image service's calls, and no others.
func (p *Images) Handle(_ any, in grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(in)
	if !ok || !strings.HasPrefix(method, service) {
		return status.Errorf(codes.Unimplemented, "unknown method %s", method)
	}
	// A message of which all fields are unknown keeps them, and their bytes.
	request := &emptypb.Empty{}
	if err := in.RecvMsg(request); err != nil {
		return err
	}
	if method != pull || p.keeper == nil {
		return p.forward(method, request, in)
	}
	undo := p.learn(request.ProtoReflect().GetUnknown())
	err := p.forward(method, request, in)
	if err != nil {
		undo()
	}
	return err
}

// forward has containerd answer a call. All calls have one request, and one answer or a stream of
// them.
func (p *Images) forward(method string, request *emptypb.Empty, in grpc.ServerStream) error {
	ctx := in.Context()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md.Copy())
	}
	out, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	// An error of sending comes as io.EOF, and what it was with the answer.
	if err := out.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := out.CloseSend(); err != nil {
		return err
	}
	for {
		answer := &emptypb.Empty{}
		err := out.RecvMsg(answer)
		if err != nil {
			in.SetTrailer(out.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := in.SendMsg(answer); err != nil {
			return err
		}
	}
}

// learn keeps what a PullImageRequest authenticates with. undo takes that back, for pulls that
// fail.
func (p *Images) learn(request []byte) (undo func()) {
	r, err := parsePull(request)
	if err != nil {
		p.log.Debug("credentials of a pull are not understood", "err", err)
		return func() {}
	}
	if r.credential == (creds.Credential{}) {
		return func() {}
	}
	added, err := p.keeper.Keep(r.repository, r.server, r.credential)
	if err != nil {
		p.log.Warn("credentials of a pull are not kept over a restart", "ref", r.image, "err", err)
	}
	return func() {
		if !added {
			return
		}
		if err := p.keeper.Drop(r.repository, r.server, r.credential); err != nil {
			p.log.Warn("credentials of a failed pull are kept", "ref", r.image, "err", err)
		}
	}
}

// pullRequest is what is read of a runtime.v1.PullImageRequest.
type pullRequest struct {
	image, repository string
	server            string
	credential        creds.Credential
}

// parsePull reads a PullImageRequest: image.image (1.1) and auth (2).
// https://github.com/kubernetes/cri-api, pkg/apis/runtime/v1/api.proto
func parsePull(b []byte) (pullRequest, error) {
	var r pullRequest
	var user, password, auth, identity string
	err := fields(b, func(n protowire.Number, v []byte) error {
		switch n {
		case 1:
			return fields(v, func(n protowire.Number, v []byte) error {
				if n == 1 {
					r.image = string(v)
				}
				return nil
			})
		case 2:
			return fields(v, func(n protowire.Number, v []byte) error {
				for k, to := range map[protowire.Number]*string{1: &user, 2: &password, 3: &auth,
					4: &r.server, 5: &identity} {
					if n == k {
						*to = string(v)
					}
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return pullRequest{}, err
	}
	ref, err := reference.ParseDockerRef(r.image)
	if err != nil {
		return pullRequest{}, fmt.Errorf("image %.200q: %w", r.image, err)
	}
	r.repository = ref.Name()
	// In containerd's order.
	switch {
	case user != "":
		r.credential = creds.Credential{User: user, Secret: password}
	case identity != "":
		r.credential = creds.Credential{Secret: identity}
	case auth != "":
		b, err := base64.StdEncoding.DecodeString(auth)
		u, p, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return pullRequest{}, errors.New("auth is not user:password in base64")
		}
		r.credential = creds.Credential{User: u, Secret: strings.Trim(p, "\x00")}
	}
	return r, nil
}

// fields calls fn for the fields of a message that have a length: messages and strings.
func fields(b []byte, fn func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := fn(number, v); err != nil {
			return err
		}
	}
	return nil
}

var _ Keeper = (*creds.Kept)(nil)
