package publish

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/show"
)

// plainEvery is how often a line says how far a command is, where there is no terminal.
const plainEvery = 5 * time.Second

// talk is how much a command says, and where.
type talk struct {
	quiet, verbose bool

	stdout io.Writer  // results
	stderr io.Writer  // warnings
	bars   *show.Bars // what is waited for, and what -v says
}

func (t *talk) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&t.quiet, "quiet", "q", false, "print nothing but warnings and errors")
	cmd.Flags().BoolVarP(&t.verbose, "verbose", "v", false, "print each step too, on stderr")
}

// begin takes what the command writes to, when the flags are known.
func (t *talk) begin(cmd *cobra.Command) error {
	t.stdout, t.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	t.bars = show.NewBars(t.stderr, plainEvery)
	if t.quiet && t.verbose {
		return show.WithCode(show.Usage, errors.New("--quiet and --verbose exclude each other"))
	}
	if t.quiet {
		t.stdout, t.bars = io.Discard, &show.Bars{}
	}
	return nil
}

// sayf says a step.
func (t *talk) sayf(format string, args ...any) {
	if t.verbose {
		fmt.Fprintf(t.bars, "mica: "+format+"\n", args...)
	}
}
