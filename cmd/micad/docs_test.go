package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/docs/docstest"
)

// key is a key of a section in a page's prose.
var key = regexp.MustCompile(
	`^(fetch|cache|index|limits|remote|credentials|buildkit)\.([a-z_]+)( = .*)?$`)

// TestDocs: the command lines in the documentation are micad's, it takes its configurations there,
// and docs/config.md has all keys with their defaults.
func TestDocs(t *testing.T) {
	pages, err := docstest.Read("../..")
	if err != nil {
		t.Fatal(err)
	}
	n, wrong := docstest.Check(pages, "micad", func() *cobra.Command { return command(&options{}) })
	for _, w := range wrong {
		t.Error(w)
	}
	if n < 10 {
		t.Errorf("%d command lines are found", n)
	}
	all := keys(t, defaults())
	configs, whole := 0, false
	path := filepath.Join(t.TempDir(), "config.toml")
	for _, p := range pages {
		for _, s := range p.Spans() {
			if m := key.FindStringSubmatch(s); m != nil {
				section, _ := all[m[1]].(map[string]any)
				if _, ok := section[m[2]]; !ok {
					t.Errorf("%s: there is no key %s", p.Path, s)
				}
			}
		}
		for _, b := range p.Blocks {
			if b.Language != "toml" || !strings.HasPrefix(b.Text, "# "+defaultConfig+"\n") {
				continue
			}
			configs++
			if err := os.WriteFile(path, []byte(b.Text), 0o600); err != nil {
				t.Fatal(err)
			}
			check := command(&options{})
			check.SetArgs([]string{"config", "check", "--config", path})
			check.SetOut(t.Output())
			if err := check.ExecuteContext(t.Context()); err != nil {
				t.Errorf("%s: %v", b.Where, err)
			}
			var has map[string]any
			var set config
			err := errors.Join(toml.Unmarshal([]byte(b.Text), &has), toml.Unmarshal([]byte(b.Text), &set))
			if err != nil {
				t.Fatal(err)
			}
			whole = whole || reflect.DeepEqual(keys(t, set), all) && slices.Equal(names(has), names(all))
		}
	}
	if configs < 5 || !whole {
		t.Errorf("%d configurations; one has every key with its default: %t", configs, whole)
	}
}

// names are the keys of a configuration, with their sections.
func names(c map[string]any) (all []string) {
	for k, v := range c {
		section, _ := v.(map[string]any)
		for _, name := range names(section) {
			all = append(all, k+"."+name)
		}
		if section == nil {
			all = append(all, k)
		}
	}
	slices.Sort(all)
	return all
}

// keys is a configuration as a file has it.
func keys(t *testing.T, c config) (all map[string]any) {
	t.Helper()
	b, err := toml.Marshal(c)
	if err == nil {
		err = toml.Unmarshal(b, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}
