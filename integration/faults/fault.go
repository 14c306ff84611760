// Package faults mistreats a node in every way that the issue of reliability
// names, in every situation, while readers in containers check every byte that
// they get: the fault matrix.
//
// A row is one fault. It has a node of its own, with six images in the six
// situations that the columns name, all at the same time:
//
//	set-up ──▶ pull and start held halfway, by the registry ──▶ strike ──▶ hold ──▶ lift ──▶ all is read to its end ──▶ five cells
//	micad starts again ──▶ strike ──▶ hold ──▶ lift ──▶ all is read to its end ──▶ the sixth
//
// Nothing but the fault is ever set right by hand. A pull or a start that fails
// is tried again, as kubelet does; a read never is.
package faults

import (
	"context"
	"time"

	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
)

// Fault is a row of the matrix.
type Fault struct {
	Name string
	// Strike makes the fault; Lift ends it, Hold after it began. Faults without
	// Lift have happened when Strike returns.
	Strike func(ctx context.Context, s *Stage) error
	Lift   func(ctx context.Context, s *Stage) error
	Hold   time.Duration
	// Calm is for how long micad fetches nothing in the background afterwards, by design.
	Calm time.Duration
	// Restore makes the fault while micad starts again, and lifts it; nil:
	// micad is killed after Strike, and Lift follows Hold later.
	Restore func(ctx context.Context, s *Stage) error
	// Options changes the node's.
	Options func(o *node.Options)
	// Prepare is called when the node runs and nothing was pulled.
	Prepare func(ctx context.Context, s *Stage) error
	// Reboots: containers end with the fault; new ones of the same images read on.
	Reboots bool
	// Whole: the image of column Idle is on the node to its last byte when the fault strikes.
	Whole bool
	// Expect is what readers of columns expect in place of what the images
	// hold: for tests of the test.
	Expect map[Column]known.Tree
	// Senseless says of cells that there are none, and why.
	Senseless map[Column]string
}

// grace is how long everything may take to be as before once a fault is over,
// on a busy machine with two processors.
const grace = 15 * time.Second

// limit is how long a read may take.
func (f Fault) limit() time.Duration { return f.Hold + grace }
