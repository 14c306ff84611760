package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/cache"
)

func TestCacheOptions(t *testing.T) {
	for text, want := range map[string]struct {
		size    int64
		percent int
		scrub   time.Duration
		says    string
	}{
		``:                       {},
		`size = ""`:              {},
		`size = "20GiB"`:         {size: 20 << 30},
		`size = "20GB"`:          {size: 20e9},
		`size = "30%"`:           {percent: 30},
		`size = " 7 %"`:          {percent: 7},
		`scrub_interval = "24h"`: {scrub: 24 * time.Hour},
		`size = "0%"`:            {says: `"30%"`},
		`size = "101%"`:          {says: `"30%"`},
		`size = "%"`:             {says: `"30%"`},
		`size = "1MiB"`:          {says: "64MiB at least"},
		`size = "-20GiB"`:        {says: "cache.size"},
		`size = "much"`:          {says: "cache.size"},
		`scrub_interval = "-1h"`: {says: "cache.scrub_interval"},
	} {
		t.Run(text, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(name, []byte("[cache]\n"+text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := readConfig(name, true)
			if want.says != "" {
				if err == nil || !strings.Contains(err.Error(), want.says) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			o, err := c.cacheOptions()
			if err != nil || o.Size != want.size || o.Percent != want.percent ||
				o.Scrub != want.scrub {
				t.Errorf("%+v, %v", o, err)
			}
		})
	}
}

func TestFreed(t *testing.T) {
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	before := []cache.Usage{{Layer: a, Disk: 100, Refs: []string{"x", "y"}}, {Layer: b, Disk: 50},
		{Layer: c, Disk: 7}}
	got := freed(before, []cache.Usage{{Layer: b, Disk: 20}, {Layer: c, Disk: 9}})
	want := []admin.Freed{{Layer: a, Ref: "y", Bytes: 100, Removed: true}, {Layer: b, Bytes: 30}}
	if got.Bytes != 130 || len(got.Freed) != 2 || got.Freed[0] != want[0] ||
		got.Freed[1] != want[1] {
		t.Errorf("%+v", got)
	}
}
