package reach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/remote"
	"github.com/mica-snapshotter/mica/remote/creds"
	"github.com/mica-snapshotter/mica/remote/layout"
)

// Image is where an image and its index lie: a registry or an OCI layout.
type Image interface {
	Ref() string
	Resolve(ctx context.Context) (ocispec.Descriptor, error)
	Manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
	FetchBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error)
	Referrers(
		ctx context.Context, subject digest.Digest, types ...string,
	) ([]ocispec.Descriptor, error)
	Open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
	PushBlob(ctx context.Context, d ocispec.Descriptor, r io.ReadSeeker) error
	PushReferrer(
		ctx context.Context, subject ocispec.Descriptor, m ocispec.Manifest,
		old ...ocispec.Descriptor,
	) (ocispec.Descriptor, error)
}

var (
	_ Image = (*remote.Image)(nil)
	_ Image = (*layout.Image)(nil)
)

// Registry is the flags of all verbs that talk to registries.
type Registry struct {
	HostsDir  string
	GiveUp    time.Duration
	PlainHTTP bool
	Platform  string
	Stderr    io.Writer // where it is told what is waited for; nil: os.Stderr

	root func() *cobra.Command
}

// Add adds the flags to a command.
func (f *Registry) Add(cmd *cobra.Command) {
	f.root = cmd.Root
	cmd.Flags().StringVar(&f.HostsDir, "hosts-dir", "/etc/containerd/certs.d",
		"registry hosts configuration, as containerd's config_path")
	cmd.Flags().DurationVar(&f.GiveUp, "give-up", 25*time.Second,
		"how long a registry may bring nothing, about, until the command fails")
}

// AddImage adds the flags of verbs that take an image's name.
func (f *Registry) AddImage(cmd *cobra.Command) {
	f.Add(cmd)
	cmd.Flags().StringVar(&f.Platform, "platform", platforms.Format(platforms.DefaultSpec()),
		"platform of a multi-platform image")
}

// Client returns a client of registries. The caller closes it.
func (f *Registry) Client() (*remote.Client, error) {
	if f.GiveUp < 0 {
		return nil, show.WithCode(show.Usage, fmt.Errorf("--give-up %v: it is negative", f.GiveUp))
	}
	return remote.New(remote.Config{
		ConfigPath:  f.HostsDir,
		Credentials: creds.NewDocker(creds.DockerOptions{}).Credentials,
		UserAgent:   "mica/" + f.root().Version,
		// An attempt that is not answered ends after the one, and none begins after the other.
		StallTimeout: f.GiveUp / 2,
		DialTimeout:  f.GiveUp / 3,
		GiveUp:       f.GiveUp / 2,
		ListTimeout:  f.GiveUp,
		Notice:       (&Notices{W: f.Stderr}).Tell,
		PlainHTTP:    f.PlainHTTP,
	})
}

// Open opens what the user named: an OCI layout where that is a folder with one (DIR or DIR:NAME),
// an image at a registry otherwise.
func (f *Registry) Open(name string) (Image, error) {
	if dir, image, ok := layoutName(name); ok {
		l, err := layout.Open(dir)
		if err != nil {
			return nil, err
		}
		return l.Image(image), nil
	}
	ref, err := Normalise(name)
	if err != nil {
		return nil, err
	}
	c, err := f.Client()
	if err != nil {
		return nil, err
	}
	return c.Image(ref)
}

// Find opens what the user named, and reads its manifest for the wanted platform.
func (f *Registry) Find(ctx context.Context, name string) (Image, Manifest, error) {
	im, err := f.Open(name)
	if err != nil {
		return nil, Manifest{}, err
	}
	list, err := Manifests(ctx, im, []string{f.Platform})
	if err != nil {
		return nil, Manifest{}, err
	}
	return im, list[0], nil
}

// layoutName splits the name of an image in an OCI layout.
func layoutName(name string) (dir, image string, ok bool) {
	isLayout := func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, ocispec.ImageLayoutFile))
		return err == nil
	}
	if isLayout(name) {
		return name, "", true
	}
	if i := strings.LastIndexByte(name, ':'); i > 0 && isLayout(name[:i]) {
		return name[:i], name[i+1:], true
	}
	return "", "", false
}

// Normalise completes a reference as docker does: "python" is docker.io/library/python:latest.
func Normalise(name string) (string, error) {
	r, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("image %q: %w: name it as in `docker pull` (HOST/NAME:TAG), or "+
			"give the folder of an OCI layout", name, err)
	}
	return r.String(), nil
}

// Manifest is the manifest of an image for one platform.
type Manifest struct {
	ocispec.Manifest
	Desc     ocispec.Descriptor
	Platform string // as it was asked for; "": the image is for one alone
}

// Manifests returns the image's manifests for the wanted platforms, those that containerd
// chooses, each once; nil: for every platform with Linux. An image that is not an index has one,
// whatever is wanted.
func Manifests(ctx context.Context, im Image, want []string) ([]Manifest, error) {
	d, err := im.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	if !images.IsIndexType(d.MediaType) {
		m, err := readManifest(ctx, im, d, "")
		return []Manifest{m}, err
	}
	if want == nil {
		if want, err = offered(ctx, im, d); err != nil {
			return nil, fmt.Errorf("%s: %w", im.Ref(), err)
		}
	}
	var all []Manifest
	for _, p := range want {
		chosen, err := choose(ctx, im, d, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", im.Ref(), err)
		}
		known := func(m Manifest) bool { return m.Desc.Digest == chosen.Digest }
		if slices.ContainsFunc(all, known) {
			continue
		}
		m, err := readManifest(ctx, im, chosen, p)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no manifest is for Linux", im.Ref())
	}
	return all, nil
}

// offered returns the platforms with Linux that an index has images for.
func offered(ctx context.Context, im Image, index ocispec.Descriptor) (names []string, err error) {
	all, err := images.Platforms(ctx, &chosen{im: im}, index)
	for _, p := range all {
		if p.OS == "linux" {
			names = append(names, platforms.Format(p))
		}
	}
	return names, err
}

// choose returns the manifest of an index, or of one that is in it, that containerd chooses for a
// platform: of each index the entry that fits best, or else the first without a platform, whose
// configuration has to name a platform that fits.
func choose(ctx context.Context, im Image, index ocispec.Descriptor,
	want string) (ocispec.Descriptor, error) {
	p, err := platforms.Parse(want)
	if err != nil {
		return ocispec.Descriptor{}, show.WithCode(show.Usage, fmt.Errorf("--platform %q: %w", want, err))
	}
	c := chosen{im: im}
	_, err = images.Manifest(ctx, &c, index, platforms.Only(p))
	if errdefs.IsNotFound(err) && ctx.Err() == nil {
		names, err := offered(ctx, im, index)
		if err == nil {
			err = fmt.Errorf("no manifest for platform %s; there are %s (choose with --platform)",
				want, strings.Join(names, ", "))
		}
		return ocispec.Descriptor{}, err
	}
	return c.manifest, err
}

// chosen is a content store with the manifests of an image. It notes the manifest that was read
// last.
type chosen struct {
	im       Image
	manifest ocispec.Descriptor
}

// ReaderAt implements content.Provider.
func (c *chosen) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	var b []byte
	var err error
	switch {
	case images.IsIndexType(d.MediaType):
		b, err = c.im.Manifest(ctx, d)
	case images.IsManifestType(d.MediaType):
		c.manifest = d
		b, err = c.im.Manifest(ctx, d)
	default: // a configuration
		b, err = c.im.FetchBlob(ctx, d, remote.MaxManifest)
	}
	if err != nil {
		return nil, err
	}
	return inMemory{bytes.NewReader(b)}, nil
}

// inMemory is a blob.
type inMemory struct{ *bytes.Reader }

// Close implements content.ReaderAt.
func (inMemory) Close() error { return nil }

func readManifest(
	ctx context.Context, im Image, d ocispec.Descriptor, platform string,
) (Manifest, error) {
	b, err := im.Manifest(ctx, d)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Desc: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest,
		Size: int64(len(b))}, Platform: platform}
	if err := json.Unmarshal(b, &m.Manifest); err != nil {
		return Manifest{}, fmt.Errorf("manifest %s of %s: %w", d.Digest, im.Ref(), err)
	}
	if len(m.Layers) == 0 {
		return Manifest{}, errors.New(im.Ref() + " has no layers: it is not a container image")
	}
	return m, nil
}
