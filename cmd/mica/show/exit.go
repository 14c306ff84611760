package show

import (
	"errors"

	"github.com/spf13/cobra"
)

// What mica ends with. Everything else that goes wrong is 1.
const (
	Usage   = 2 // the command line makes no sense
	Nothing = 3 // there is nothing that could be indexed or recorded
)

// coded is an error with what mica ends with because of it.
type coded struct {
	error
	code int
}

// Unwrap returns the error itself.
func (c coded) Unwrap() error { return c.error }

// WithCode returns err as one that mica ends with code for.
func WithCode(code int, err error) error { return coded{err, code} }

// Code is what mica ends with.
func Code(err error) int {
	var c coded
	switch {
	case err == nil:
		return 0
	case errors.As(err, &c):
		return c.code
	}
	return 1
}

// Group has a command that only has others below it refuse a name that none of them has. cobra
// would print its help, and end with 0.
func Group(cmd *cobra.Command) *cobra.Command {
	cmd.Args, cmd.DisableFlagsInUseLine = cobra.NoArgs, true
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}
