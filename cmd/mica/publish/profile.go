package publish

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/profile"
)

// ProfileCommand returns `mica profile`.
func ProfileCommand() *cobra.Command {
	cmd := show.Group(&cobra.Command{
		Use:   "profile",
		Short: "What first starts of images read: list, record, publish",
		Long: `A profile is what the first start of an image reads, in order. micad records one
at every first start of an image on a node, and fetches what it names before
the next container asks for it, on this node or, where the profile is
published beside the image, on any other.`,
	})
	cmd.AddCommand(profileListCommand(), profileShowCommand(), profileExportCommand(),
		profileImportCommand(),
		profileRemoveCommand(), profilePushCommand(), profileRecordCommand(), profileRuncCommand())
	return cmd
}

// profileStore is where a node's profiles are: with micad, or in a folder.
type profileStore interface {
	list(ctx context.Context) ([]admin.Profile, error)
	// load's error wraps os.ErrNotExist where there is none.
	load(ctx context.Context, manifest digest.Digest) (*profile.Profile, error)
	save(ctx context.Context, p *profile.Profile, replace bool) error
	remove(ctx context.Context, manifest digest.Digest) error
}

// profileFlags are the flags of the verbs that speak of a node's profiles.
type profileFlags struct {
	registry reach.Registry
	address  string
	root     string
}

func (f *profileFlags) add(cmd *cobra.Command) {
	reach.AddAddress(cmd, &f.address)
	cmd.Flags().StringVar(&f.root, "root", "",
		"read micad's folder instead of asking it (/var/lib/micad, as a rule)")
}

func (f *profileFlags) store() profileStore {
	if f.root != "" {
		return profileFolder{profile.NewDir(f.root)}
	}
	return profileDaemon{reach.Daemon(f.address)}
}

// manifest returns the digest of the manifest that the user named: by its digest, or as an image.
func (f *profileFlags) manifest(ctx context.Context, name string) (digest.Digest, error) {
	if d := digest.Digest(name); d.Validate() == nil {
		return d, nil
	}
	_, m, err := f.registry.Find(ctx, name)
	return m.Desc.Digest, err
}

// load loads the profile of the manifest or image that the user named.
func (f *profileFlags) load(ctx context.Context, name string) (*profile.Profile, error) {
	m, err := f.manifest(ctx, name)
	if err != nil {
		return nil, err
	}
	p, err := f.store().load(ctx, m)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("this node has no profile of %s: start a container of it with "+
			"micad, or run mica profile record", name)
	}
	return p, err
}

// profileDaemon is the profiles of a running micad.
type profileDaemon struct{ client *admin.Client }

func (d profileDaemon) list(ctx context.Context) (out []admin.Profile, err error) {
	return out, d.client.Get(ctx, admin.PathProfiles, &out)
}

func (d profileDaemon) load(ctx context.Context, manifest digest.Digest) (*profile.Profile, error) {
	b, err := d.client.Profile(ctx, manifest)
	if err != nil {
		return nil, err
	}
	return profile.Decode(b, profile.Limits{})
}

func (d profileDaemon) save(ctx context.Context, p *profile.Profile, replace bool) error {
	b, err := p.Encode()
	if err != nil {
		return err
	}
	return d.client.PutProfile(ctx, p.Manifest, b, replace)
}

func (d profileDaemon) remove(ctx context.Context, manifest digest.Digest) error {
	return d.client.RemoveProfile(ctx, manifest)
}

// profileFolder is the profiles in micad's folder.
type profileFolder struct{ dir *profile.Dir }

func (f profileFolder) list(context.Context) ([]admin.Profile, error) {
	return admin.DescribeProfiles(f.dir)
}

func (f profileFolder) load(_ context.Context, manifest digest.Digest) (*profile.Profile, error) {
	return f.dir.Load(manifest)
}

func (f profileFolder) save(_ context.Context, p *profile.Profile, replace bool) error {
	if replace {
		return f.dir.Replace(p)
	}
	_, err := f.dir.Save(p)
	return err
}

func (f profileFolder) remove(_ context.Context, manifest digest.Digest) error {
	return f.dir.Remove(manifest)
}
