//go:build !manual

package manual

import "github.com/spf13/cobra"

// AddTo adds nothing: what a daemon does not need takes none of its memory.
func AddTo(*cobra.Command) {}
