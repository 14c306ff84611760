package snapshotter

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// mapped reports whether labels ask for the IDs of a snapshot to be mapped.
func mapped(labels map[string]string) bool {
	_, uid := labels[snapshots.LabelSnapshotUIDMapping]
	_, gid := labels[snapshots.LabelSnapshotGIDMapping]
	return uid || gid
}

// mappedRoot returns the IDs on the host of a container's root, by the labels uidmapping and
// gidmapping. A mapping that is not given, or empty, leaves IDs as they are.
func mappedRoot(labels map[string]string) (uid, gid int, err error) {
	if uid, err = hostID(labels[snapshots.LabelSnapshotUIDMapping]); err != nil {
		return 0, 0, fmt.Errorf("map the root user: %w", err)
	}
	if gid, err = hostID(labels[snapshots.LabelSnapshotGIDMapping]); err != nil {
		return 0, 0, fmt.Errorf("map the root group: %w", err)
	}
	return uid, gid, nil
}

// hostID returns the host's ID for ID 0 of a container. A mapping is a list of container:host:size,
// separated by commas, as containerd's client writes it. All of it has to be well formed.
func hostID(mapping string) (int, error) {
	if mapping == "" {
		return 0, nil
	}
	host, found := uint32(0), false
	for entry := range strings.SplitSeq(mapping, ",") {
		fields := strings.Split(entry, ":")
		if len(fields) != 3 {
			return 0, fmt.Errorf("mapping %q: not container:host:size", entry)
		}
		var n [3]uint32
		for i, field := range fields {
			v, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				return 0, fmt.Errorf("mapping %q: %w", entry, err)
			}
			if v == 1<<32-1 { // the kernel's invalid ID
				return 0, fmt.Errorf("mapping %q: %d is not an ID", entry, v)
			}
			n[i] = uint32(v)
		}
		// Only the entry that starts at 0 can hold 0.
		if n[0] == 0 && n[2] > 0 && !found {
			host, found = n[1], true
		}
	}
	if !found {
		return 0, fmt.Errorf("mapping %q: maps no ID 0", mapping)
	}
	return int(host), nil
}
