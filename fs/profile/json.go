package profile

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
)

// jsonVersion is the version of the exported form. Fields are added, never renamed, within it.
const jsonVersion = 1

// jsonProfile is the exported form of a profile.
type jsonProfile struct {
	Version  int           `json:"version"`
	Manifest digest.Digest `json:"manifest"`
	Runs     int           `json:"runs"`
	Ranges   []jsonRange   `json:"ranges"`
}

type jsonRange struct {
	Layer  digest.Digest `json:"layer"`
	Offset int64         `json:"offset"`
	Size   int64         `json:"size"`
	AtMS   int64         `json:"at_ms"`
	Runs   int           `json:"runs"`
}

// MarshalJSON implements json.Marshaler. The form is stable: fields are added, never renamed.
func (p *Profile) MarshalJSON() ([]byte, error) {
	out := jsonProfile{Version: jsonVersion, Manifest: p.Manifest, Runs: p.Runs,
		Ranges: make([]jsonRange, len(p.Ranges))}
	for i, r := range p.Ranges {
		out.Ranges[i] = jsonRange{r.Layer, r.Off, r.Size, int64(r.At / tick), r.Runs}
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler. It takes what MarshalJSON writes, with the default
// limits, and ranges in any order. The error wraps ErrInvalid.
func (p *Profile) UnmarshalJSON(b []byte) error {
	var in jsonProfile
	if err := json.Unmarshal(b, &in); err != nil {
		return invalid("%w", err)
	}
	if in.Version != jsonVersion {
		return invalid("JSON of version %d, %d is known", in.Version, jsonVersion)
	}
	out := Profile{Manifest: in.Manifest, Runs: in.Runs, Ranges: make([]Range, len(in.Ranges))}
	for i, r := range in.Ranges {
		if r.AtMS < 0 || r.AtMS > int64(maxAt/tick) { // before the product below overflows
			return invalid("range %d: at_ms is out of range", i)
		}
		out.Ranges[i] = Range{r.Layer, r.Offset, r.Size, time.Duration(r.AtMS) * tick, r.Runs}
	}
	if err := out.Check(Limits{}); err != nil {
		return err
	}
	out.sort()
	*p = out
	return nil
}

// Import returns the profile in b, which is the binary format or the exported JSON. The error
// wraps ErrInvalid.
func Import(b []byte, lim Limits) (*Profile, error) {
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return Decode(b, lim)
	}
	if lim = lim.withDefaults(); len(b) > 16*lim.Encoded {
		return nil, invalid("%d bytes of JSON, at most %d wanted", len(b), 16*lim.Encoded)
	}
	p := &Profile{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, invalid("%w", err)
	}
	return p, p.Check(lim)
}
