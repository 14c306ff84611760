package faults

import (
	"fmt"
	"strings"
	"time"

	"github.com/mica-snapshotter/mica/integration/known"
)

// Column is what a node and a container were at when a fault struck.
type Column string

// The columns of the matrix.
const (
	Pull    Column = "pull"    // the image was being pulled
	Start   Column = "start"   // a container was starting, with nothing of its image on the node
	Load    Column = "load"    // readers read files that are on the node and files that are not
	Idle    Column = "idle"    // a container ran and read nothing; it reads after the fault
	Fill    Column = "fill"    // the rest of the image was being fetched, beside readers
	Restore Column = "restore" // micad was starting again, beside readers
)

// Columns are all columns, in the order of the table.
var Columns = []Column{Pull, Start, Load, Idle, Fill, Restore}

// Cell is what came of one fault in one situation.
type Cell struct {
	Report known.Report
	// Tries is how often a pull or a start was tried until it went well, as
	// kubelet does; 0 in cells without.
	Tries int
	// Ready is how long after the fault had struck the pull or the start went well; 0 if it had
	// before. A pull has when the layers are promised.
	Ready time.Duration
	// Trouble is what did not recover by itself in time; nil: everything did.
	Trouble error
	// Senseless says why there is no such cell; then the rest is zero.
	Senseless string
}

// Problem says what is wrong with a cell; "": nothing is. limit is how long
// a read may take.
func (c Cell) Problem(limit time.Duration) string {
	if c.Senseless != "" {
		return ""
	}
	var all []string
	add := func(bad bool, format string, args ...any) {
		if bad {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	r := c.Report
	add(r.Wrong > 0, "%d reads brought wrong bytes", r.Wrong)
	add(r.Failed > 0, "%d reads failed", r.Failed)
	add(r.Longest > limit, "a read took %v, more than %v", r.Longest.Round(time.Millisecond), limit)
	add(c.Trouble != nil, "did not recover: %v", c.Trouble)
	add(r.Reads == 0, "nothing was read")
	add(!r.Passed, "the image was not read to its end")
	if len(all) > 0 {
		all = append(all, r.Trouble...)
	}
	return strings.Join(all, "; ")
}

// String is the cell as the table shows it: reads, failed, wrong, the longest
// wait, and for a pull or a start how long it took and how many tries.
func (c Cell) String() string {
	if c.Senseless != "" {
		return "–"
	}
	r := c.Report
	s := fmt.Sprintf("%d/%d/%d %s", r.Reads, r.Failed, r.Wrong, seconds(r.Longest))
	if c.Tries > 0 {
		s += ", " + seconds(c.Ready)
	}
	if c.Tries > 1 {
		s += fmt.Sprintf(" ×%d", c.Tries)
	}
	if c.Trouble != nil || !r.Passed {
		s += " stuck"
	}
	return s
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// Problems says what is wrong with a row; err is what Try has returned.
func (r Row) Problems(err error) []string {
	var all []string
	if err != nil {
		all = append(all, err.Error())
	}
	for _, c := range Columns {
		cell, ok := r.Cells[c]
		if !ok && err != nil {
			continue
		}
		if !ok {
			all = append(all, fmt.Sprintf("%s: there is no such cell", c))
			continue
		}
		if p := cell.Problem(r.Fault.limit()); p != "" {
			all = append(all, fmt.Sprintf("%s: %s", c, p))
		}
	}
	return all
}
