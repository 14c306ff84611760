package pull

import (
	"errors"
	"fmt"

	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/index/tartree"
)

// Limits bounds what images may demand of the node. The zero value: the defaults, which no image
// that is known comes near.
type Limits struct {
	Entries int // files of one layer; 0: 2 million, about a gigabyte of memory in a scan
	// ScanMemory is how many bytes all layers together take that are scanned at a time, where that
	// is more than one; 0: 64 MiB.
	ScanMemory int64
	IndexSize  int64 // bytes of the indexes of one image, decompressed; 0: 512 MiB
	LayerSize  int64 // bytes of one layer, decompressed; 0: 2 TiB, as many as an index can address
}

func (l Limits) bundle() bundle.Limits { return bundle.Limits{IndexSize: l.IndexSize} }

// Tree returns the limits of a scan.
func (l Limits) Tree(c *Scan) tartree.Limits {
	return tartree.Limits{Entries: l.Entries, Memory: c.Take}
}

// Layer says whether a layer of so many bytes, decompressed, is taken.
func (l Limits) Layer(size int64) error {
	if l.LayerSize > 0 && size > l.LayerSize {
		return fmt.Errorf("layer of %d bytes, decompressed: %w of %d (Limits.LayerSize)",
			size, bundle.ErrLimit, l.LayerSize)
	}
	return nil
}

// Advise says what can be done about an error that is one of a limit.
func Advise(err error) error {
	if errors.Is(err, bundle.ErrLimit) || errors.Is(err, tartree.ErrLimit) {
		return fmt.Errorf("%w: raise it in section [limits] of micad's configuration if the image "+
			"is to be trusted", err)
	}
	return err
}
