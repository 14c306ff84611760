package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/distribution/reference"
	"google.golang.org/grpc"

	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/remote/creds"
	"github.com/mica-snapshotter/mica/remote/creds/cri"
)

// retainEvery is how often credentials are forgotten whose images are gone.
const retainEvery = time.Hour

// credentials is where micad has those for registries from, and what learns more of them.
type credentials struct {
	creds.Keychain
	log    *slog.Logger
	kept   *creds.Kept // nil: nothing is kept
	images *cri.Images // nil: the kubelet's calls are not passed on
}

// openCredentials makes the keychains, those of the pulls themselves first. What cannot be opened
// is left out and logged: public images, and what is on disk, need none.
func openCredentials(c config, log *slog.Logger) *credentials {
	k := &credentials{log: log}
	o := c.Credentials
	var chain []creds.Keychain
	if o.ImageService != "" {
		var keeper cri.Keeper
		var err error
		k.kept, err = creds.OpenKept(creds.KeptOptions{Dir: filepath.Join(c.Root, "credentials"),
			Key: o.Key, Logger: log})
		if err != nil {
			log.Error("credentials of the kubelet's pulls are not kept", "err", err)
		} else {
			keeper = k.kept
			chain = append(chain, k.kept)
		}
		if k.images, err = cri.New(o.ImageService, keeper, log); err != nil {
			log.Error("the kubelet's pulls are not passed on", "err", err)
		}
	}
	if o.ProviderConfig != "" {
		chain = append(chain,
			creds.NewKubelet(creds.KubeletOptions{Config: o.ProviderConfig,
				BinDir: o.ProviderBinDir, Logger: log}))
	}
	k.Keychain = creds.Chain(append(chain,
		creds.NewDocker(creds.DockerOptions{Paths: c.Remote.DockerConfigs}))...)
	return k
}

// serverOptions has a gRPC server answer the kubelet, too.
func (k *credentials) serverOptions() []grpc.ServerOption {
	if k.images == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.UnknownServiceHandler(k.images.Handle)}
}

// retain forgets, until ctx ends, credentials of images of which no layer is left. layers returns
// those there are, false when they are not all known.
func (k *credentials) retain(ctx context.Context, layers func() ([]fs.Status, bool)) {
	if k.kept == nil {
		return
	}
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		all, ok := layers()
		if !ok {
			continue
		}
		used := map[string]bool{}
		for _, l := range all {
			if ref, err := reference.ParseDockerRef(l.Ref); err == nil {
				used[ref.Name()] = true
			}
		}
		if err := k.kept.Retain(func(repository string) bool {
			return used[repository]
		}); err != nil {
			k.log.Warn("credentials that nothing needs any more are still kept", "err", err)
		}
	}
}

func (k *credentials) close() error {
	if k.images == nil {
		return nil
	}
	return k.images.Close()
}

// checkCredentials checks the section credentials.
func (c *config) checkCredentials() error {
	o := c.Credentials
	if (o.ProviderConfig == "") != (o.ProviderBinDir == "") {
		return errors.New("credentials.kubelet_provider_config and kubelet_provider_bin_dir go " +
			"together: they are the kubelet's" +
			" --image-credential-provider-config and --image-credential-provider-bin-dir")
	}
	return nil
}
