package setup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"

	"github.com/pelletier/go-toml/v2"

	"github.com/mica-snapshotter/mica/cmd/mica/conf"
)

var errEdit = errors.New("its text is not understood well enough to be changed")

// importList is the beginning of a list of imports.
var importList = regexp.MustCompile(`(?m)^[ \t]*imports[ \t]*=[ \t]*\[`)

// addImport adds a pattern to what a configuration of containerd imports. nil: there is none yet.
func addImport(text []byte, pattern string) ([]byte, error) {
	if text == nil {
		return fmt.Appendf(nil, "%sversion = 3\nimports = [%q]\n", header, pattern), nil
	}
	var before conf.Table
	if err := toml.Unmarshal(text, &before); err != nil {
		return nil, err
	}
	list, ok := before["imports"].([]any)
	after := fmt.Appendf(nil, "imports = [%q]%s\n%s", pattern, mark, text)
	if ok {
		at := importList.FindIndex(text)
		if at == nil {
			return nil, fmt.Errorf("imports: %w", errEdit)
		}
		after = fmt.Appendf(nil, "%s%q, %s", text[:at[1]], pattern, text[at[1]:])
	}
	if before == nil {
		before = conf.Table{}
	}
	before["imports"] = append([]any{pattern}, list...)
	return verified(after, before)
}

// addKey adds a key with a string to a table of a configuration, or to its top. It returns the text
// as it is where the key has a value, and that value.
func addKey(text []byte, in, key, value string) ([]byte, any, error) {
	var c conf.Table
	if err := toml.Unmarshal(text, &c); err != nil {
		return nil, nil, err
	}
	if c == nil {
		c = conf.Table{}
	}
	line := fmt.Sprintf("%s = %q%s\n", key, value, mark)
	at := 0 // a key of no table may always stand at the top, a new table at the end
	to := c
	if in != "" {
		header := regexp.MustCompile(`(?m)^[ \t]*\[` + regexp.QuoteMeta(in) + `\].*\n`)
		found := header.FindIndex(text)
		to, _ = c[in].(conf.Table)
		switch {
		case to == nil && c[in] == nil:
			to = conf.Table{}
			c[in] = to
			line = fmt.Sprintf("\n[%s]%s\n%s", in, mark, line)
			at = len(text)
		case found != nil:
			at = found[1]
		case to[key] == nil:
			return nil, nil, fmt.Errorf("[%s]: %w", in, errEdit)
		}
	}
	if v, ok := to[key]; ok {
		return text, v, nil
	}
	to[key] = value
	after, err := verified(fmt.Appendf(nil, "%s%s%s", text[:at], line, text[at:]), c)
	return after, value, err
}

// marked are the lines that mica setup has added to micad's configuration.
var marked = regexp.MustCompile(`(?m)(^\n)?^.*` + regexp.QuoteMeta(mark) + `\n`)

// Without is a configuration of micad as it is without the lines of mica setup.
func Without(text []byte) []byte { return marked.ReplaceAll(text, nil) }

// verified returns a text that says what it has to.
func verified(text []byte, want conf.Table) ([]byte, error) {
	var got conf.Table
	if err := toml.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		return nil, errEdit
	}
	return text, nil
}

// addJSON sets keys of a JSON object, and keeps all others. An object that has them stays as it is.
func addJSON(b []byte, keys map[string]any) ([]byte, error) {
	object := map[string]any{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if len(bytes.TrimSpace(b)) > 0 {
		if err := d.Decode(&object); err != nil {
			return nil, err
		}
	}
	if conf.Has(object, keys) {
		return b, nil
	}
	conf.Merge(object, keys)
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(object)
	return out.Bytes(), err
}
