package snapshotter

import (
	"context"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"go.uber.org/goleak"
)

// TestMain puts the tests' directories below $MICA_TEST_DIR, when it is set: overlayfs needs a real
// filesystem for its upper directories, which /tmp may not be.
func TestMain(m *testing.M) {
	if dir := os.Getenv("MICA_TEST_DIR"); dir != "" {
		if err := os.Setenv("TMPDIR", dir); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// TestSuite runs containerd's own tests of a snapshotter.
func TestSuite(t *testing.T) {
	for name, options := range map[string][]Option{
		"default":   nil,
		"remap-ids": {WithRemapIDs()},
	} {
		t.Run(name, func(t *testing.T) {
			testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				s := New(root, &fakeLayers{}, options...)
				if err := s.Open(t.Context()); err != nil {
					return nil, nil, err
				}
				return s, s.Close, nil
			})
		})
	}
}
