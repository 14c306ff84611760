package fs

import (
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Status is one layer of the table.
type Status struct {
	Layer digest.Digest `json:"layer"`
	Ref   string        `json:"reference"` // the image that brought it last
	Mode  Mode          `json:"mode"`      // how containers that start now read it
	State string        `json:"state"`     // "lazy", "complete" or "verified"
	Dir   string        `json:"directory"` // its mount points, one after another
	// Present and Total are bytes of the uncompressed layer: on this node, and in all.
	Present int64 `json:"present_bytes"`
	Total   int64 `json:"total_bytes"`
	// Requests and Fetched count what micad has read from registries for reads of this
	// layer since it was mounted; a layer that was downloaded whole has none.
	Requests int64 `json:"requests"`
	Fetched  int64 `json:"fetched_bytes"`
	// Waiting is the number of reads that wait for the network now.
	Waiting       int64     `json:"waiting_reads"`
	LastError     string    `json:"last_error,omitempty"`
	LastErrorTime time.Time `json:"last_error_time,omitzero"`
}

// Status returns the layers of the table, ordered by image and layer.
func (t *Table) Status() []Status {
	all := []Status{}
	for _, l := range t.opened(false) {
		all = append(all, l.status())
	}
	slices.SortFunc(all, func(a, b Status) int {
		return strings.Compare(a.Ref+" "+a.Layer.String(), b.Ref+" "+b.Layer.String())
	})
	return all
}

func (l *openLayer) status() Status {
	data, rec := l.data.Stats(), l.store.Record()
	s := Status{
		Layer: l.digest, State: rec.State.String(), Present: data.Present, Total: data.Size,
		Requests: data.Requests, Fetched: data.Fetched, Waiting: data.Waiting,
	}
	if len(rec.Refs) > 0 {
		s.Ref = rec.Refs[len(rec.Refs)-1]
	}
	if data.LastError != nil {
		s.LastError, s.LastErrorTime = data.LastError.Error(), data.LastErrorAt
	}
	var dirs []string
	l.mu.Lock()
	for _, p := range l.points {
		s.Mode = p.mode
		dirs = append(dirs, p.dir)
	}
	l.mu.Unlock()
	slices.Sort(dirs)
	s.Dir = strings.Join(dirs, ":")
	return s
}
