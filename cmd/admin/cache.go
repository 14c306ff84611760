package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/cache"
)

// Paths of the part of the API that is about what lies on disk.
const (
	PathCache  = "/v1/cache"
	PathUsage  = "/v1/usage"
	PathGC     = "/v1/gc"
	PathVerify = "/v1/verify"
)

// Collected is what a collection of garbage has freed, by layer.
type Collected struct {
	Freed []Freed `json:"freed"`
	Bytes int64   `json:"bytes"` // of all
}

// Freed is what was freed of one layer.
type Freed struct {
	Layer   digest.Digest `json:"layer"`
	Ref     string        `json:"reference"`
	Bytes   int64         `json:"bytes"`
	Removed bool          `json:"removed"` // nothing is left of it
}

// Collect makes micad remove what nothing refers to, and with unused also the content of layers
// that no container uses.
func (c *Client) Collect(ctx context.Context, unused bool) (Collected, error) {
	var out Collected
	return out, c.post(ctx, PathGC+"?unused="+strconv.FormatBool(unused), &out)
}

// Verify makes micad check all that it has on disk of a layer. The error wraps os.ErrNotExist where
// it has none.
func (c *Client) Verify(ctx context.Context, layer digest.Digest) (cache.Verified, error) {
	var out cache.Verified
	return out, c.post(ctx, PathVerify+"/"+url.PathEscape(layer.String()), &out)
}

func (c *Client) post(ctx context.Context, path string, v any) error {
	b, err := c.send(ctx, http.MethodPost, path, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read micad's answer to %s: %w", path, err)
	}
	return nil
}
