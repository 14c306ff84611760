package faults_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/known"
)

// Each way in which a cell can be bad is seen, and a good one is not.
func TestVerdict(t *testing.T) {
	good := known.Report{Reads: 10, Longest: time.Second, Passed: true}
	for name, tt := range map[string]struct {
		change func(c *faults.Cell)
		want   string
	}{
		"good":   {func(*faults.Cell) {}, ""},
		"wrong":  {func(c *faults.Cell) { c.Report.Wrong = 1 }, "wrong bytes"},
		"failed": {func(c *faults.Cell) { c.Report.Failed = 1 }, "1 reads failed"},
		"slow": {func(c *faults.Cell) { c.Report.Longest = 6 * time.Second },
			"more than 5s"},
		"stuck":      {func(c *faults.Cell) { c.Trouble = errors.New("it hangs") }, "it hangs"},
		"nothing":    {func(c *faults.Cell) { c.Report.Reads = 0 }, "nothing was read"},
		"not to end": {func(c *faults.Cell) { c.Report.Passed = false }, "not read to its end"},
		"no such":    {func(c *faults.Cell) { *c = faults.Cell{Senseless: "why"} }, ""},
		"what failed": {func(c *faults.Cell) {
			c.Report.Failed, c.Report.Trouble = 1,
				[]string{"f0001: EIO"}
		}, "f0001: EIO"},
	} {
		t.Run(name, func(t *testing.T) {
			c := faults.Cell{Report: good}
			tt.change(&c)
			if got := c.Problem(5 * time.Second); (got == "") != (tt.want == "") ||
				!strings.Contains(got, tt.want) {
				t.Errorf("problem %q, want %q", got, tt.want)
			}
		})
	}
}

// A row with a cell missing is bad, as is one whose fault could not be made.
func TestRowProblems(t *testing.T) {
	row := faults.Row{Cells: map[faults.Column]faults.Cell{}}
	for _, c := range faults.Columns {
		row.Cells[c] = faults.Cell{Report: known.Report{Reads: 1, Passed: true}}
	}
	if got := row.Problems(nil); len(got) != 0 {
		t.Errorf("good: %q", got)
	}
	if got := row.Problems(errors.New("no disk")); len(got) != 1 || got[0] != "no disk" {
		t.Errorf("with an error: %q", got)
	}
	delete(row.Cells, faults.Idle)
	if got := row.Problems(nil); len(got) != 1 || !strings.HasPrefix(got[0], "idle: ") {
		t.Errorf("without a cell: %q", got)
	}
}

// The table replaces the one in a document, and nothing else of it.
func TestUpdate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	const head, tail = "# Title\n<!-- matrix: written by the test -->\n", "<!-- end of matrix -->\nmore\n"
	if err := os.WriteFile(path, []byte(head+"old\n"+tail), 0o600); err != nil {
		t.Fatal(err)
	}
	table := faults.Table([]faults.Row{{Fault: faults.Fault{Name: "SIGKILL"},
		Cells: map[faults.Column]faults.Cell{
			faults.Pull: {Senseless: "because"},
			faults.Load: {Report: known.Report{Reads: 5, Failed: 1, Wrong: 2,
				Longest: 1500 * time.Millisecond, Passed: true}},
		}}})
	for _, want := range []string{"| SIGKILL | – | ? | 5/1/2 1.5s | ",
		"- SIGKILL, pull: because\n"} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	if err := faults.Update(path, "matrix", table); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != head+table+tail {
		t.Errorf("%s, %v", got, err)
	}
	if err := faults.Update(filepath.Join(t.TempDir(), "none"), "matrix", table); err == nil {
		t.Error("a document that is not there")
	}
}
