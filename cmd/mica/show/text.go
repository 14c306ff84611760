// Package show is how commands show things: sizes, digests, JSON, what is waited for, and how they
// have ended.
package show

import (
	"encoding/json"
	"fmt"
	"io"
)

// JSON prints v.
func JSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Short cuts a digest to what a person compares: "sha256:" and 12 digits.
func Short(digest string) string {
	if len(digest) > 19 {
		return digest[:19]
	}
	return digest
}

// Bytes writes a number of bytes for people, in powers of 1000 as registries do.
func Bytes(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n)
	unit := -1
	for v >= 1000 && unit < len(units)-1 {
		v /= 1000
		unit++
	}
	return fmt.Sprintf("%.1f %cB", v, units[unit])
}
