package tree

import (
	"fmt"
	"strconv"
	"strings"
)

// Diff compares two descriptions and returns one line for each path at which
// they differ, "" if there is none. Of the paths in undated the times are not
// compared: directories that a layer implies without mentioning them have
// whatever time their unpacking took place.
func Diff(want, got string, undated map[string]bool) string {
	w, g := byPath(want), byPath(got)
	var b strings.Builder
	for _, line := range w.lines {
		path := pathOf(line)
		other, ok := g.at[path]
		switch {
		case !ok:
			fmt.Fprintf(&b, "- %s\n", line)
		case line == other:
		case undated[path] && undate(line) == undate(other):
		default:
			fmt.Fprintf(&b, "- %s\n+ %s\n", line, other)
		}
	}
	for _, line := range g.lines {
		if _, ok := w.at[pathOf(line)]; !ok {
			fmt.Fprintf(&b, "+ %s\n", line)
		}
	}
	return b.String()
}

// Count is the number of paths in a description.
func Count(description string) int { return strings.Count(description, "\n") }

type description struct {
	lines []string
	at    map[string]string // by path
}

func byPath(s string) description {
	d := description{at: map[string]string{}}
	for line := range strings.SplitSeq(strings.TrimSuffix(s, "\n"), "\n") {
		d.lines = append(d.lines, line)
		d.at[pathOf(line)] = line
	}
	return d
}

// pathOf returns the unquoted path of a line.
func pathOf(line string) string {
	q, err := strconv.QuotedPrefix(line)
	if err != nil {
		return line
	}
	path, err := strconv.Unquote(q)
	if err != nil {
		return line
	}
	return path
}

// undate takes the time out of a line.
func undate(line string) string {
	before, rest, ok := strings.Cut(line, " mtime=")
	if !ok {
		return line
	}
	_, after, _ := strings.Cut(rest, " ")
	return before + " " + after
}
