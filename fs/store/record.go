package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ErrDamaged is wrapped by errors about a layer's folder that cannot be used as
// it is. The way out is Store.Remove and fetching the layer anew.
var ErrDamaged = errors.New("damaged layer folder")

// State says how far a layer has come. It only grows, but for damage.
type State uint8

// The states of a layer.
const (
	Lazy     State = iota // some spans may be missing
	Complete              // all spans are present, each verified by itself
	Verified              // the device's digest is the diffID: fit to be served without Mica
)

var stateNames = []string{"lazy", "complete", "verified"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText writes the name that String returns.
func (s State) MarshalText() ([]byte, error) {
	if int(s) >= len(stateNames) {
		return nil, fmt.Errorf("unknown layer state %d", uint8(s))
	}
	return []byte(stateNames[s]), nil
}

// UnmarshalText accepts what MarshalText writes.
func (s *State) UnmarshalText(b []byte) error {
	i := slices.Index(stateNames, string(b))
	if i < 0 {
		return fmt.Errorf("unknown layer state %q", b)
	}
	*s = State(i)
	return nil
}

// Record is what the store knows about a layer beside its bytes: the file
// layer.json in the layer's folder.
type Record struct {
	Layer      digest.Digest `json:"layer"`     // of the blob, as registries name it
	DiffID     digest.Digest `json:"diffID"`    // of the device
	MediaType  string        `json:"mediaType"` // of the blob
	LayerSize  int64         `json:"layerSize"` // bytes of the blob
	DeviceSize int64         `json:"deviceSize"`
	Spans      int           `json:"spans"` // how many spans the index divides the device into
	State      State         `json:"state"`
	// Refs are image references that brought the layer, the latest last: where
	// its blob can be fetched from. At most maxRefs are kept.
	Refs []string `json:"refs,omitempty"`
	// Windows says where the windows section can be fetched, for a layer that
	// has none on disk.
	Windows Windows `json:"windows,omitzero"`
	// Vouchers are the repositories ("docker.io/library/debian") that have this very index, where
	// nothing but their word says that its files are the layer's: who may push to one must not
	// change what images of another show. None: the index was made, or proved, on this node.
	Vouchers []string `json:"vouchers,omitempty"`
	// Forged: there was another index before, which showed other files than the layer has.
	Forged bool `json:"forged,omitempty"`
	// Disproved: the index that the Vouchers vouch for is of other bytes than those of DiffID.
	Disproved bool `json:"disproved,omitempty"`
}

// Windows is the place of a layer's windows section: from Off on in a blob that lies
// beside the layers of Record.Refs. The zero value: nowhere.
type Windows struct {
	Blob     digest.Digest `json:"blob"`
	BlobSize int64         `json:"blobSize"`
	Off      int64         `json:"off"`
}

const (
	recordName    = "layer.json"
	recordVersion = 1
	maxRecord     = 1 << 20 // bytes of layer.json
	maxRefs       = 16
	// maxSpans bounds the presence map's memory: 8 MiB. At the usual span of
	// 1 MiB it is a layer of 64 TiB.
	maxSpans = 1 << 26
)

// recordFile is layer.json.
type recordFile struct {
	Version int `json:"version"`
	Record
}

// check says whether the record can belong to layer d.
func (r *Record) check(d digest.Digest) error {
	switch {
	case r.Layer != d:
		return fmt.Errorf("record is of layer %q", r.Layer)
	case r.DiffID.Validate() != nil:
		return fmt.Errorf("diffID %q: %w", r.DiffID, r.DiffID.Validate())
	case r.LayerSize < 0 || r.DeviceSize < 0 || r.DeviceSize > 1<<62:
		return fmt.Errorf("sizes %d, %d", r.LayerSize, r.DeviceSize)
	case r.Spans < 0 || r.Spans > maxSpans || int64(r.Spans) > r.DeviceSize:
		return fmt.Errorf("%d spans for %d bytes", r.Spans, r.DeviceSize)
	case r.Spans == 0 && r.DeviceSize > 0:
		return fmt.Errorf("no spans for %d bytes", r.DeviceSize)
	case r.Windows != Windows{} && (r.Windows.Blob.Validate() != nil || r.Windows.Off < 0 || r.Windows.Off > r.Windows.BlobSize):
		return fmt.Errorf("windows at %d of blob %q, %d bytes", r.Windows.Off, r.Windows.Blob, r.Windows.BlobSize)
	case int(r.State) >= len(stateNames):
		return fmt.Errorf("state %d", r.State)
	}
	return nil
}

func (r *Record) clone() Record {
	c := *r
	c.Refs = slices.Clone(r.Refs)
	c.Vouchers = slices.Clone(r.Vouchers)
	return c
}

// encodeRecord makes layer.json.
func encodeRecord(r *Record) ([]byte, error) {
	b, err := json.MarshalIndent(recordFile{recordVersion, *r}, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// decodeRecord reads layer.json of layer d; errors wrap ErrDamaged.
func decodeRecord(b []byte, d digest.Digest) (Record, error) {
	var f recordFile
	if err := json.Unmarshal(b, &f); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if f.Version != recordVersion {
		return Record{}, fmt.Errorf("%w: record version %d, known is %d", ErrDamaged, f.Version, recordVersion)
	}
	if err := f.check(d); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return f.Record, nil
}

// addRef is AddRef for the record, and says whether that changed anything.
func (r *Record) addRef(ref string) bool {
	refs := AddRef(r.Refs, ref)
	changed := !slices.Equal(refs, r.Refs)
	r.Refs = refs
	return changed
}

// AddRef returns refs with ref as the latest, as a Record has them. A bare repository, which is all
// that is known of an image whose pull has just begun, goes when an image of it has a name.
func AddRef(refs []string, ref string) []string {
	names := func(s, repository string) bool {
		rest, ok := strings.CutPrefix(s, repository)
		return ok && strings.Contains(repository, "/") && (rest[0] == ':' || rest[0] == '@')
	}
	if ref == "" || slices.Contains(refs[max(len(refs)-1, 0):], ref) ||
		slices.ContainsFunc(refs, func(s string) bool { return s != ref && names(s, ref) }) {
		return refs
	}
	all := slices.DeleteFunc(slices.Clone(refs), func(s string) bool {
		return s == ref || names(ref, s)
	})
	all = append(all, ref)
	return all[max(len(all)-maxRefs, 0):]
}
