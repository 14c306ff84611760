package index_test

import (
	"io"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// Sections, in the order of their records in the header.
const (
	sectionTree = iota
	sectionSpans
	sectionImplicit
	sectionDigests
)

// spanSize is the size of a record of the span table.
const spanSize = 112

// Places and sizes in the EROFS image, in bytes from the start of the file on.
const (
	superOffset   = 1024
	slotOffset    = superOffset + 128
	metaOffset    = superOffset + 512 // inode nid lies at metaOffset + nid*nidSize
	nidSize       = 32
	rootNid       = 1
	maxBlocks     = 1<<32 - 2
	nullBlock     = 1<<32 - 1
	layoutInline  = 2
	layoutChunked = 4
)

// checkSpans says what is wrong with s as the spans of a layer whose sizes are h's.
func checkSpans(s index.Spans, h index.Header) error {
	h.Layer, h.DiffID = digest.FromString("layer"), digest.FromString("tar")
	root := &erofs.Node{Mode: unix.S_IFDIR}
	_, err := index.Write(io.Discard, &index.Draft{Header: h, Root: root, Spans: s})
	return err
}
