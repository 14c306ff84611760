// Package docstest reads Mica's pages, for tests of what the pages say: that links lead somewhere,
// that commands and configurations are right, and that what is marked to be run runs.
//
// A page comes from Read as blocks of code and prose. A block is marked by a comment before its
// fence, which readers of a page do not see:
//
//	<!-- test: containerd -->
//
// integration/systemd runs the blocks of each name, page after page, as one script.
package docstest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Page is a page, or the README.
type Page struct {
	Path     string // below the checkout's root
	Prose    string // all but the blocks, whose lines are empty here
	Blocks   []Block
	Headings []string // as they stand, without their marks
}

// Block is a fenced block of code.
type Block struct {
	Where    string // page and line
	Language string // sh, toml; empty: none is named
	Test     string // the name that it is marked with; empty: it is not marked
	Text     string
}

var (
	mark    = regexp.MustCompile(`^\s*<!-- test: (\S+) -->$`)
	fence   = regexp.MustCompile("^( *)```(\\w*)")
	heading = regexp.MustCompile(`^#+ (.+)$`)
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	span    = regexp.MustCompile("`([^`]+)`")
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	start   = regexp.MustCompile(`^(?:\$ |- |run: )?(?:sudo )?(?:[A-Z_]+=\S* )*(micad?)( .*)?$`)
	quotes  = strings.NewReplacer(`"`, "", `'`, "")
	between = regexp.MustCompile(`\|\||&&|[|;]`)
)

// Read reads the README and all pages of a checkout.
func Read(checkout string) ([]Page, error) {
	paths, err := filepath.Glob(filepath.Join(checkout, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	var pages []Page
	for _, path := range append([]string{filepath.Join(checkout, "README.md")}, paths...) {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		name, err := filepath.Rel(checkout, path)
		if err != nil {
			return nil, err
		}
		p, err := parse(name, string(b))
		if err != nil {
			return nil, err
		}
		pages = append(pages, p)
	}
	return pages, nil
}

// parse takes a page apart.
func parse(path, text string) (Page, error) {
	p := Page{Path: path}
	var prose strings.Builder
	var open *Block
	var indent, test string
	for i, line := range strings.Split(text, "\n") {
		where := fmt.Sprintf("%s:%d", path, i+1)
		at := fence.FindStringSubmatch(line)
		switch {
		case open != nil && at != nil:
			p.Blocks, open = append(p.Blocks, *open), nil
		case open != nil:
			open.Text += strings.TrimPrefix(line, indent) + "\n"
		case at != nil:
			indent = at[1]
			open, test = &Block{Where: where, Language: at[2], Test: test}, ""
		case test != "":
			return p, fmt.Errorf("%s: the mark %q is not followed by a block", where, test)
		default:
			if m := mark.FindStringSubmatch(line); m != nil {
				test = m[1]
			}
			if m := heading.FindStringSubmatch(line); m != nil {
				p.Headings = append(p.Headings, m[1])
			}
			prose.WriteString(line)
		}
		prose.WriteByte('\n')
	}
	if open != nil {
		return p, fmt.Errorf("%s: the block does not end", open.Where)
	}
	p.Prose = prose.String()
	return p, nil
}

// Links are what the page's links lead to, as it stands there.
func (p Page) Links() (targets []string) {
	for _, m := range link.FindAllStringSubmatch(span.ReplaceAllString(p.Prose, ""), -1) {
		targets = append(targets, m[1])
	}
	return targets
}

// Anchors are the names that GitHub gives the page's headings.
func (p Page) Anchors() (names []string) {
	for _, h := range p.Headings {
		name := strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(h), ""), " ", "-")
		base := name
		for i := 1; slices.Contains(names, name); i++ {
			name = fmt.Sprintf("%s-%d", base, i)
		}
		names = append(names, name)
	}
	return names
}

// Spans are the pieces of code in the page's prose.
func (p Page) Spans() (codes []string) {
	for _, m := range span.FindAllStringSubmatch(p.Prose, -1) {
		codes = append(codes, strings.Join(strings.Fields(m[1]), " "))
	}
	return codes
}

// Commands are the command lines of a program, mica or micad, in code, without its name.
func Commands(program, code string) (lines [][]string) {
	for line := range strings.Lines(strings.ReplaceAll(code, "\\\n", " ")) {
		line, _, _ = strings.Cut(line, " #")
		for _, part := range between.Split(line, -1) {
			if m := start.FindStringSubmatch(strings.TrimSpace(part)); m != nil && m[1] == program {
				lines = append(lines, strings.Fields(quotes.Replace(m[2])))
			}
		}
	}
	return lines
}

// Parse parses a command line without running it. A mere mention of a command need not have its
// arguments.
func Parse(root *cobra.Command, args []string, mention bool) error {
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	rest = cmd.Flags().Args()
	if !cmd.Runnable() && len(rest) > 0 {
		return fmt.Errorf("%s has no command %s", cmd.CommandPath(), rest[0])
	}
	if mention && len(rest) == 0 {
		return nil
	}
	if err := cmd.ValidateRequiredFlags(); err != nil {
		return err
	}
	if err := cmd.ValidateFlagGroups(); err != nil {
		return err
	}
	return cmd.ValidateArgs(rest)
}

// Check parses all command lines of a program in pages, and says which are wrong. root makes the
// program's commands anew, because flags stay set.
func Check(pages []Page, program string, root func() *cobra.Command) (n int, wrong []string) {
	check := func(where, code string, mention bool) {
		for _, args := range Commands(program, code) {
			n++
			if err := Parse(root(), args, mention); err != nil {
				wrong = append(wrong, fmt.Sprintf("%s: %s %s: %v", where, program,
					strings.Join(args, " "), err))
			}
		}
	}
	for _, p := range pages {
		for _, b := range p.Blocks {
			check(b.Where, b.Text, false)
		}
		for _, s := range p.Spans() {
			if !strings.ContainsAny(s, "[…") { // a synopsis
				check(p.Path, s, true)
			}
		}
	}
	return n, wrong
}
