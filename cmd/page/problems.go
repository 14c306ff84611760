package page

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxProblems is how many different problems are remembered.
const maxProblems = 50

// Problem is something that went wrong, and what helps.
type Problem struct {
	First, Last time.Time
	Count       int
	What        string
	Do          string // "": nobody knows
}

// Problems keeps the latest warnings and errors of a log. The zero value is ready.
type Problems struct {
	mu   sync.Mutex
	list []Problem // the latest last
}

// Handler returns a handler that notes what next is given, too.
func (p *Problems) Handler(next slog.Handler) slog.Handler { return noting{next, p, ""} }

// Latest returns the problems, the last first.
func (p *Problems) Latest() []Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.Clone(p.list)
	slices.Reverse(all)
	return all
}

func (p *Problems) add(at time.Time, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := Problem{First: at, What: what, Do: Advice(what)}
	if i := slices.IndexFunc(p.list, func(o Problem) bool { return o.What == what }); i >= 0 {
		one = p.list[i]
		p.list = slices.Delete(p.list, i, i+1)
	}
	one.Last = at
	one.Count++
	p.list = append(p.list, one)
	p.list = slices.Delete(p.list, 0, max(len(p.list)-maxProblems, 0))
}

// noting is what Handler returns.
type noting struct {
	slog.Handler
	to    *Problems
	attrs string
}

// Enabled implements slog.Handler.
func (n noting) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn || n.Handler.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (n noting) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		attrs := n.attrs
		r.Attrs(func(a slog.Attr) bool { attrs += said(a); return true })
		n.to.add(r.Time, r.Message+attrs)
	}
	if !n.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return n.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (n noting) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		n.attrs += said(a)
	}
	n.Handler = n.Handler.WithAttrs(attrs)
	return n
}

// WithGroup implements slog.Handler.
func (n noting) WithGroup(name string) slog.Handler {
	n.Handler = n.Handler.WithGroup(name)
	return n
}

// said writes an attribute; a stack and a duration are left to the log, because two problems that
// differ in these alone are one.
func said(a slog.Attr) string {
	v := a.Value.Resolve()
	if a.Key == "stack" || v.Kind() == slog.KindDuration {
		return ""
	}
	return fmt.Sprintf(", %s: %v", a.Key, v)
}

// advice is what helps where a text has a word, the first that fits; section is one of
// docs/troubleshooting.md.
var advice = []struct {
	word, do, section string
}{
	{"no space left", "Free space on the disk of micad's root: mica gc --unused, or set a quota " +
		"(cache.size).", "The disk grows"},
	{"quota", "Raise cache.size, or remove images: mica du shows what they take.",
		"The disk grows"},
	{"input/output error", "Look at the disk (dmesg). micad fetches again what it cannot read; " +
		"mica verify checks an image.", "Reads fail or hang"},
	{"refuses access", "micad has no valid login for this registry: log in as root, or name the " +
		"file in docker_configs.", "Not lazy"},
	{"unauthorized", "micad has no valid login for this registry: log in as root, or name the " +
		"file in docker_configs. Reads go on within three seconds.", "Reads fail or hang"},
	{"credentials", "micad cannot get a login for this registry: look at docker_configs and the " +
		"[credentials] of its configuration.", "Not lazy"},
	{"not found", "The registry does not have it any more: push the image again, or remove it " +
		"here.", "Reads fail or hang"},
	{"does not match its digest", "A proxy or the registry changes bytes. micad shows none of " +
		"them; look at what is between.", "Reads fail or hang"},
	{"bytes are wrong", "A proxy or the registry changes bytes. micad shows none of them; look at " +
		"what is between.", "Reads fail or hang"},
	{"other files than the layer", "An index that is not the layer's was published: remove the " +
		"image, and ask who may push there.", "Reads fail or hang"},
	{"index", "Make a new index, from anywhere: mica index create --push REF.", "Not lazy"},
	{"panic", "This is a bug: report it with what mica support gathers.", "What to look at"},
	{"damaged", "It is fetched again. If it comes often, look at the disk (dmesg).",
		"After a restart"},
	{"will not survive", "Raise FileDescriptorStoreMax and FDSTORE in the unit.",
		"After a restart"},
	{"no containerd", "Start containerd, or name its socket by containerd_address.", "Not lazy"},
	{"zstd", "Such a layer comes whole; others of the image are lazy.", "Not lazy"},
	{"dial tcp", registryAdvice, "Reads fail or hang"},
	{"no such host", registryAdvice, "Reads fail or hang"},
	{"timeout", registryAdvice, "Reads fail or hang"},
	{"deadline", registryAdvice, "Reads fail or hang"},
	{"connection", registryAdvice, "Reads fail or hang"},
	{"stalled", registryAdvice, "Reads fail or hang"},
}

const registryAdvice = "Look at the registry and the way to it (network, DNS, proxy). Reads go " +
	"on by themselves when it is back."

// Advice says what helps against a problem; "": it is not known.
func Advice(what string) string {
	what = strings.ToLower(what)
	for _, a := range advice {
		if strings.Contains(what, a.word) {
			return a.do + " (Troubleshooting: " + a.section + ")"
		}
	}
	return ""
}
