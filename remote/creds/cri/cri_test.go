package cri

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mica-snapshotter/mica/remote/creds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// message makes a protobuf message of pairs of number and bytes.
func message(pairs ...any) []byte {
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		b = protowire.AppendTag(b, protowire.Number(pairs[i].(int)), protowire.BytesType)
		switch v := pairs[i+1].(type) {
		case string:
			b = protowire.AppendString(b, v)
		case []byte:
			b = protowire.AppendBytes(b, v)
		}
	}
	return b
}

func raw(b []byte) *emptypb.Empty {
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(b)
	return m
}

// serve runs a gRPC server that answers everything by handler, and returns its socket.
func serve(t *testing.T, handler grpc.StreamHandler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(handler))
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Stop(); running.Wait() })
	return path
}

// memory is a Keeper.
type memory struct {
	mu   sync.Mutex
	kept map[string]creds.Credential // by repository and server
}

func (m *memory) Keep(repository, server string, c creds.Credential) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, there := m.kept[repository+" "+server]
	m.kept[repository+" "+server] = c
	return !there, nil
}

func (m *memory) Drop(repository, server string, _ creds.Credential) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.kept, repository+" "+server)
	return nil
}

// proxy is Images in front of a containerd that handler plays, and a client of it.
func proxy(t *testing.T, handler grpc.StreamHandler) (*memory, *grpc.ClientConn) {
	t.Helper()
	k := &memory{kept: map[string]creds.Credential{}}
	p, err := New(serve(t, handler), k, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	conn, err := grpc.NewClient((&url.URL{Scheme: "unix", Path: serve(t, p.Handle)}).String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return k, conn
}

// TestForward: requests, answers, streams, errors and metadata pass as they are; other services do
// not.
func TestForward(t *testing.T) {
	_, conn := proxy(t, func(_ any, s grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(s)
		in := &emptypb.Empty{}
		if err := s.RecvMsg(in); err != nil {
			return err
		}
		if md, _ := metadata.FromIncomingContext(s.Context()); len(md.Get("x-key")) == 0 {
			return status.Error(codes.Internal, "no metadata")
		}
		switch method {
		case service + "RemoveImage":
			return status.Error(codes.NotFound, "no such image")
		case service + "StreamImages":
			for range 3 {
				if err := s.SendMsg(in); err != nil {
					return err
				}
			}
			return nil
		}
		return s.SendMsg(raw(message(7, "answer to "+method, 8,
			[]byte(in.ProtoReflect().GetUnknown()))))
	})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-key", "v")
	request := message(1, "what", 99, "of a later version")
	var out emptypb.Empty
	err := conn.Invoke(ctx, service+"ImageStatus", raw(request), &out)
	if want := string(message(7, "answer to "+service+"ImageStatus", 8, request)); err != nil ||
		string(out.ProtoReflect().GetUnknown()) != want {
		t.Errorf("%q, %v, want %q", out.ProtoReflect().GetUnknown(), err, want)
	}
	if err := conn.Invoke(ctx, service+"RemoveImage", raw(request),
		&out); status.Code(err) != codes.NotFound ||
		status.Convert(err).Message() != "no such image" {
		t.Errorf("error %v", err)
	}
	if err := conn.Invoke(ctx, "/runtime.v1.RuntimeService/RunPodSandbox", raw(request),
		&out); status.Code(err) != codes.Unimplemented {
		t.Errorf("another service: %v", err)
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, service+"StreamImages")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SendMsg(raw(request)), s.CloseSend()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for s.RecvMsg(&out) == nil {
		n++
	}
	if n != 3 {
		t.Errorf("%d answers", n)
	}
}

// TestPulls: what a pull authenticates with is kept before containerd hears of it, and only if it
// succeeds.
func TestPulls(t *testing.T) {
	image := func(ref string) []byte { return message(1, ref, 18, ref) }
	for _, tc := range []struct {
		name    string
		request []byte
		where   string // repository and server; "": nothing is kept
		want    creds.Credential
	}{
		{"user and password",
			message(1, image("reg.test/a/b:1"), 2, message(1, "u", 2, "p"), 3,
				"sandbox"), "reg.test/a/b ", creds.Credential{User: "u", Secret: "p"}},
		{"docker.io", message(1, image("debian"), 2, message(1, "u", 2, "p")),
			"docker.io/library/debian ", creds.Credential{User: "u", Secret: "p"}},
		{"digest", message(1, image("reg.test:5000/a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), 2, message(5, "long")), "reg.test:5000/a ", creds.Credential{Secret: "long"}},
		{"auth", message(1, image("reg.test/a"), 2, message(3, "dTpw", 4, "https://other.test")),
			"reg.test/a https://other.test", creds.Credential{User: "u", Secret: "p"}},
		{"none", message(1, image("reg.test/a")), "", creds.Credential{}},
		{"empty", message(1, image("reg.test/a"), 2, message()), "", creds.Credential{}},
		{"no reference", message(1, image("Not A Reference"), 2, message(1, "u", 2, "p")), "",
			creds.Credential{}},
		{"no base64", message(1, image("reg.test/a"), 2, message(3, "%")), "", creds.Credential{}},
	} {
		for _, fails := range []bool{false, true} {
			t.Run(tc.name, func(t *testing.T) {
				var k *memory
				var during int
				k, conn := proxy(t, func(_ any, s grpc.ServerStream) error {
					in := &emptypb.Empty{}
					if err := s.RecvMsg(in); err != nil {
						return err
					}
					k.mu.Lock()
					during = len(k.kept)
					k.mu.Unlock()
					if fails || string(in.ProtoReflect().GetUnknown()) != string(tc.request) {
						return status.Error(codes.PermissionDenied, "no")
					}
					return s.SendMsg(&emptypb.Empty{})
				})
				err := conn.Invoke(t.Context(), pull, raw(tc.request), &emptypb.Empty{})
				if (err != nil) != fails {
					t.Fatal(err)
				}
				if (during == 1) != (tc.where != "") {
					t.Errorf("%d are kept during the pull; %v", during, err)
				}
				if c, ok := k.kept[tc.where]; ok == fails && tc.where != "" || c != tc.want &&
					!fails {
					t.Errorf("kept %q", k.kept)
				}
				if fails && len(k.kept) > 0 {
					t.Errorf("kept after a failure: %q", k.kept)
				}
			})
		}
	}
}

// TestNoContainerd: without containerd a call fails, and later ones work.
func TestNoContainerd(t *testing.T) {
	p, err := New(filepath.Join(t.TempDir(), "none"), &memory{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	conn, err := grpc.NewClient((&url.URL{Scheme: "unix", Path: serve(t, p.Handle)}).String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := conn.Invoke(ctx, service+"ListImages", raw(nil),
		&emptypb.Empty{}); status.Code(err) != codes.Unavailable {
		t.Errorf("error %v", err)
	}
}

func FuzzPull(f *testing.F) {
	f.Add(message(1, message(1, "reg.test/a"), 2,
		message(1, "u", 2, "p", 3, "dTpw", 4, "s", 5, "t")))
	f.Add([]byte{0x08, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parsePull(b)
		if err == nil && r.repository == "" {
			t.Error("no repository and no error")
		}
	})
}
