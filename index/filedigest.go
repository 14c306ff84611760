package index

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// FileDigest is the sha256 of a regular file's content.
type FileDigest struct {
	Nid    uint64
	Digest [sha256.Size]byte
}

// minDigested is the smallest file, in bytes, whose digest is kept: smaller ones
// cost more to find than to fetch.
const minDigested = 4096

// fileDigestSize is the size of a record: nid in 4 bytes, sha256 in 32.
const fileDigestSize = 4 + sha256.Size

// digested says whether the content digest of n is kept.
func (n *Node) digested() bool {
	return n.Mode&modeType == modeRegular && n.Size >= minDigested && n.Digest != [sha256.Size]byte{}
}

// WriteDigests writes the content digests of d's files of 4 KiB and more to w
// and returns how many bytes it wrote. They belong behind the layer's windows: the windows
// section that a bundle takes is d.WindowsSize bytes of windows and then these.
func WriteDigests(w io.Writer, d *Draft) (int64, error) {
	p, err := newPlan(d)
	if err != nil {
		return 0, fmt.Errorf("write content digests of layer %s: %w", d.Layer, err)
	}
	return p.writeDigests(w)
}

func (p *plan) writeDigests(w io.Writer) (int64, error) {
	total := int64(0)
	var r [fileDigestSize]byte
	for _, n := range p.nodes {
		if !n.digested() {
			continue
		}
		binary.LittleEndian.PutUint32(r[:], uint32(n.at.nid()))
		copy(r[4:], n.Digest[:])
		if _, err := w.Write(r[:]); err != nil {
			return total, err
		}
		total += fileDigestSize
	}
	return total, nil
}

// FileDigests parses the layer's content digests, in the order of their nids. b
// holds the DigestsRange of its windows section; it is checked against the header.
func (l *Layer) FileDigests(b []byte) ([]FileDigest, error) {
	s := l.header.section[sectionDigests]
	if int64(len(b)) != s.Size || sha256.Sum256(b) != s.sum {
		return nil, fmt.Errorf("content digests of layer %s: %w", l.header.Layer, corrupt("digest of the section"))
	}
	out := make([]FileDigest, len(b)/fileDigestSize)
	for i := range out {
		r := b[i*fileDigestSize:]
		out[i].Nid = uint64(binary.LittleEndian.Uint32(r))
		copy(out[i].Digest[:], r[4:])
		if out[i].Nid == 0 || i > 0 && out[i].Nid <= out[i-1].Nid {
			return nil, fmt.Errorf("content digests of layer %s: %w", l.header.Layer, corrupt("order"))
		}
	}
	return out, nil
}

// DigestsRange returns where the content digests lie in the layer's windows section.
func (l *Layer) DigestsRange() Range { return l.header.section[sectionDigests].Range }
