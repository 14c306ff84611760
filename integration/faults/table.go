package faults

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// Table is the matrix as a table of Markdown, with the reasons for its empty cells.
func Table(rows []Row) string {
	var b strings.Builder
	b.WriteString("| fault | ")
	for _, c := range Columns {
		fmt.Fprintf(&b, "%s | ", c)
	}
	b.WriteString("\n|---|")
	b.WriteString(strings.Repeat("---|", len(Columns)))
	b.WriteString("\n")
	var notes []string
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s |", r.Fault.Name)
		for _, c := range Columns {
			cell, ok := r.Cells[c]
			text := cell.String()
			if !ok {
				text = "?"
			}
			if cell.Senseless != "" {
				notes = append(notes, fmt.Sprintf("- %s, %s: %s", r.Fault.Name, c, cell.Senseless))
			}
			fmt.Fprintf(&b, " %s |", text)
		}
		b.WriteString("\n")
	}
	if len(notes) > 0 {
		b.WriteString("\n" + strings.Join(notes, "\n") + "\n")
	}
	return b.String()
}

// Update puts a table into a document, in the place of the one of this name that is there.
func Update(path, name, table string) error {
	begin := "<!-- " + name + ": written by the test -->\n"
	end := "<!-- end of " + name + " -->\n"
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(b, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table %s", path, name)
	}
	return os.WriteFile(path, fmt.Appendf(nil, "%s%s%s%s%s", before, begin, table, end, after),
		0o644)
}
