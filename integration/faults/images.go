package faults

import (
	"context"
	"fmt"
	"os"

	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// layers is how many layers each image has. maxFilled is between the size of
// those of column Fill's image, which are filled, and those of the others.
const (
	layers    = 2
	maxFilled = "5MiB"
)

// trees are what the images hold. A span holds about one file.
var trees = map[Column]known.Tree{
	Pull:    {Seed: 1, Files: 90, Size: 124 << 10},
	Start:   {Seed: 2, Files: 90, Size: 124 << 10},
	Load:    {Seed: 3, Files: 90, Size: 124 << 10},
	Idle:    {Seed: 4, Files: 90, Size: 124 << 10},
	Fill:    {Seed: 5, Files: 30, Size: 96 << 10}, // 9 s at the bandwidth of a row, in which its container has to be reading
	Restore: {Seed: 6, Files: 90, Size: 124 << 10},
}

// Push puts the images of all columns into a registry, with their indexes.
// probe is the path of the program cmd/probe, static.
func Push(ctx context.Context, r *registry.Registry, probe string) error {
	program, err := os.ReadFile(probe)
	if err != nil {
		return err
	}
	for column, tree := range trees {
		img, err := images.Known(tree, "data", layers, images.File("probe", 0o755, program))
		if err != nil {
			return err
		}
		ref := reference(r.Direct(), column)
		if err := images.Push(ctx, ref, img); err != nil {
			return err
		}
		if _, err := node.Command(ctx, "mica", "index", "create", "--span-size", "128KiB", "--push",
			ref); err != nil {
			return err
		}
	}
	return nil
}

func reference(host string, c Column) string { return fmt.Sprintf("%s/%s:test", host, c) }
