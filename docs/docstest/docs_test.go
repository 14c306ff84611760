package docstest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

const checkout = "../.."

// named is a page that code, an error or another page names.
var named = regexp.MustCompile(
	"(?:mica/blob/main/|[\\s(\"'`])(docs/[a-z-]+\\.md)(?:#([a-z0-9-]+))?")

// TestLinks: each link of a page to the repository, and each page that code names, is there.
func TestLinks(t *testing.T) {
	pages := read(t)
	anchors := map[string][]string{}
	for _, p := range pages {
		anchors[p.Path] = p.Anchors()
	}
	follow := func(where, path, anchor string) {
		if _, err := os.Stat(filepath.Join(checkout, path)); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if anchor != "" && !slices.Contains(anchors[path], anchor) {
			t.Errorf("%s: %s has no heading #%s", where, path, anchor)
		}
	}
	n := 0
	for _, p := range pages {
		for _, l := range p.Links() {
			if strings.Contains(l, "://") {
				continue
			}
			n++
			path, anchor, _ := strings.Cut(l, "#")
			if path != "" {
				path = filepath.Join(filepath.Dir(p.Path), path)
			} else {
				path = p.Path
			}
			follow(p.Path, path, anchor)
		}
	}
	err := filepath.WalkDir(checkout, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (d.Name() == "build" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if err != nil || !slices.Contains([]string{".go", ".md", ".sh", ".yaml", ".service"},
			filepath.Ext(path)) {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range named.FindAllStringSubmatch(string(b), -1) {
			n++
			follow(path, m[1], m[2])
		}
		return err
	})
	if err != nil || n < 100 {
		t.Errorf("%d links, %v", n, err)
	}
}

// TestSyntax: blocks that name a language are of it, and configurations name their file.
func TestSyntax(t *testing.T) {
	languages := map[string]func([]byte) error{
		"toml": func(b []byte) error { return toml.Unmarshal(b, &map[string]any{}) },
		"yaml": func(b []byte) error { return yaml.Unmarshal(b, &map[string]any{}) },
	}
	for _, p := range read(t) {
		for _, b := range p.Blocks {
			if parse := languages[b.Language]; parse != nil {
				if err := parse([]byte(b.Text)); err != nil {
					t.Errorf("%s: %v", b.Where, err)
				}
			}
			if b.Language == "toml" && !strings.HasPrefix(b.Text, "# /") {
				t.Errorf("%s: the first line does not say which file this is", b.Where)
			}
		}
	}
}

func read(t *testing.T) []Page {
	t.Helper()
	pages, err := Read(checkout)
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

func TestParse(t *testing.T) {
	p, err := parse("page.md", "# A `b`: c, d\n## Two words\n## Two words\n"+
		"[x\ny](z.md#a) `[no](no)`\n"+
		"1. a\n   <!-- test: one -->\n   ```sh\n   mica pull \\\n     REF && sudo micad keep # no\n"+
		"     $ mica ps | mica no\n   ```\n`sudo mica\nps`\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Anchors(); !slices.Equal(got, []string{"a-b-c-d", "two-words", "two-words-1"}) {
		t.Errorf("anchors %q", got)
	}
	if got := p.Links(); !slices.Equal(got, []string{"z.md#a"}) {
		t.Errorf("links %q", got)
	}
	if got := p.Spans(); !slices.Contains(got, "sudo mica ps") {
		t.Errorf("spans %q", got)
	}
	if len(p.Blocks) != 1 {
		t.Fatalf("blocks %+v", p.Blocks)
	}
	b := p.Blocks[0]
	if b.Where != "page.md:8" || b.Language != "sh" || b.Test != "one" {
		t.Errorf("block %+v", b)
	}
	var got []string
	for _, args := range append(Commands("mica", b.Text), Commands("micad", b.Text)...) {
		got = append(got, strings.Join(args, " "))
	}
	if !slices.Equal(got, []string{"pull REF", "ps", "no", "keep"}) {
		t.Errorf("commands %q", got)
	}
	for _, wrong := range []string{"```sh\n", "<!-- test: one -->\nno block\n"} {
		if _, err := parse("page.md", wrong); err == nil {
			t.Errorf("%q is a page", wrong)
		}
	}
}
