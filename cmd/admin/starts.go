package admin

import (
	"cmp"
	"time"

	"github.com/opencontainers/go-digest"
)

// PathStarts is the path of the latest starts, the last first.
const PathStarts = "/v1/starts"

// Start is a container's start, with the pull of its image where that was just before; or a pull
// alone.
type Start struct {
	ID        int           `json:"id"` // among those since micad's start
	Ref       string        `json:"reference"`
	Manifest  digest.Digest `json:"manifest"`
	Container string        `json:"container,omitempty"` // the key of its snapshot; "": a pull alone
	Began     time.Time     `json:"began"`
	Pulled    time.Time     `json:"pulled,omitzero"`  // containerd has its last layer; zero: no pull
	Created   time.Time     `json:"created,omitzero"` // the container's snapshot is made
	// Ready is since when no read of the container has waited; zero: that is not known yet.
	Ready time.Time `json:"ready,omitzero"`
	Lines []Line    `json:"lines"`             // in the order in which they began
	Left  int       `json:"left_out,omitzero"` // lines for which there was no room
}

// Line is a request to a registry, or a read that waited.
type Line struct {
	Kind   string    `json:"kind"`
	What   string    `json:"what"` // path below the repository; of a read: the layer's digest
	Host   string    `json:"host,omitempty"`
	Range  string    `json:"range,omitempty"` // of the blob, or of the layer's tar
	Sent   time.Time `json:"sent"`
	First  time.Time `json:"first,omitzero"` // when the answer began
	Last   time.Time `json:"last,omitzero"`  // when its last bytes so far came
	Bytes  int64     `json:"bytes"`
	Status int       `json:"status,omitempty"`
	Error  string    `json:"error,omitempty"`
	Over   bool      `json:"over"`
}

// The kinds of lines.
const (
	KindRead     = "read that waited"
	KindLayer    = "part of a layer"
	KindBeside   = "index or profile"
	KindLookup   = "look-up"
	KindManifest = "manifest"
	KindToken    = "token"
)

// Sandbox is the name of a pod's sandbox, which the kubelet gives none.
const Sandbox = "pause"

// ContainerName names a container as a person knows it.
func ContainerName(id string, labels map[string]string) string {
	if pod := labels["io.kubernetes.pod.name"]; pod != "" {
		return pod + "/" + cmp.Or(labels["io.kubernetes.container.name"], Sandbox)
	}
	return cmp.Or(labels["nerdctl/name"], id)
}
