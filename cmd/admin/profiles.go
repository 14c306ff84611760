package admin

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/profile"
)

// Profile describes a profile that the node keeps.
type Profile struct {
	Manifest digest.Digest `json:"manifest"`
	Runs     int           `json:"runs"`
	Layers   int           `json:"layers"`
	Ranges   int           `json:"ranges"`
	Bytes    int64         `json:"bytes"` // of all ranges
	Saved    time.Time     `json:"saved"`
	// Error says why the profile cannot be read; then what it holds is not known.
	Error string `json:"error,omitempty"`
}

// DescribeProfiles describes the profiles in a folder.
func DescribeProfiles(dir *profile.Dir) ([]Profile, error) {
	entries, err := dir.List()
	out := []Profile{}
	for _, e := range entries {
		d := Profile{Manifest: e.Manifest, Saved: e.Saved}
		if p, err := dir.Load(e.Manifest); err != nil {
			d.Error = err.Error()
		} else {
			d.Runs, d.Layers, d.Ranges, d.Bytes = p.Runs, p.Layers(), len(p.Ranges), p.Bytes()
		}
		out = append(out, d)
	}
	return out, err
}

// MaxProfile bounds an encoded profile that is sent to micad, bytes.
const MaxProfile = 4 << 20

func pathOf(manifest digest.Digest) string {
	return PathProfiles + "/" + url.PathEscape(manifest.String())
}

// Profile returns the encoded profile of a manifest. The error wraps os.ErrNotExist where micad has
// none.
func (c *Client) Profile(ctx context.Context, manifest digest.Digest) ([]byte, error) {
	return c.send(ctx, http.MethodGet, pathOf(manifest), nil)
}

// PutProfile gives micad an encoded profile of a manifest, to be merged with the one that it has or
// to replace it.
func (c *Client) PutProfile(
	ctx context.Context, manifest digest.Digest, encoded []byte, replace bool,
) error {
	_, err := c.send(ctx, http.MethodPut, pathOf(manifest)+"?replace="+strconv.FormatBool(replace),
		encoded)
	return err
}

// RemoveProfile removes the profile of a manifest. The error wraps os.ErrNotExist where micad has
// none.
func (c *Client) RemoveProfile(ctx context.Context, manifest digest.Digest) error {
	_, err := c.send(ctx, http.MethodDelete, pathOf(manifest), nil)
	return err
}
