package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mica-snapshotter/mica/snapshotter"
	"github.com/mica-snapshotter/mica/snapshotter/images"
)

// containerdImages are the images of the containerd that uses micad, which is looked for when it is first
// asked, and again when it has gone.
type containerdImages struct {
	address func(ctx context.Context) (string, error)

	mu    sync.Mutex
	conn  *grpc.ClientConn
	store *images.Store
}

var _ snapshotter.Images = (*containerdImages)(nil)

// With implements snapshotter.Images.
func (c *containerdImages) With(
	ctx context.Context, namespace string, chain digest.Digest, known []string,
) ([]snapshotter.Image, error) {
	s, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	found, err := s.With(ctx, namespace, chain, known)
	return found, c.failed(s, err)
}

// Named implements snapshotter.Images.
func (c *containerdImages) Named(
	ctx context.Context, namespace, ref string, manifest digest.Digest,
) (snapshotter.Image, error) {
	s, err := c.open(ctx)
	if err != nil {
		return snapshotter.Image{}, err
	}
	found, err := s.Named(ctx, namespace, ref, manifest)
	return found, c.failed(s, err)
}

func (c *containerdImages) open(ctx context.Context) (*images.Store, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.store != nil {
		return c.store, nil
	}
	address, err := c.address(ctx)
	if err != nil {
		return nil, fmt.Errorf("find containerd: %w", err)
	}
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	c.conn, c.store = conn, images.New(conn)
	return c.store, nil
}

// failed has containerd looked for again after an error.
func (c *containerdImages) failed(s *images.Store, err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.store == s {
		err = errors.Join(err, c.closeLocked())
	}
	return err
}

func (c *containerdImages) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeLocked()
}

func (c *containerdImages) closeLocked() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn, c.store = nil, nil
	return err
}
