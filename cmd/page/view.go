package page

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/cmd/page/chart"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/cache"
)

// State is what the page shows.
type State struct {
	Now      time.Time
	Node     string // its name
	Info     admin.Info
	Received uint64 // bytes from registries since micad's start
	Layers   []fs.Status
	Cache    cache.Status
	Usage    []cache.Usage
	Users    map[string][]string     // containers, by the image's reference
	Name     func(key string) string // of a container, by its snapshot's key
	Replays  []fs.ReplayStatus
	Starts   []admin.Start
	// What is wrong: images that were left to containerd, and the log's warnings.
	Fallbacks []admin.Fallback
	Problems  []Problem
}

// view is a State as the page's templates take it.
type view struct {
	State
	Images         []imageView
	StartViews     []startView
	Wrong          []Problem // the latest first
	Lazy, Waiting  int64
	Present, Total int64
	Sections       []section // of what is above
}

type imageView struct {
	ID             string
	Ref            string
	Layers         []cache.Usage
	Lazy, Whole    int
	Size           int64 // in the registry
	Present, Total int64 // uncompressed bytes
	Disk           int64
	Users          []string
}

type startView struct {
	admin.Start
	drawing   chart.Waterfall
	Container string
	Requests  int
	Bytes     int64 // of these
	Reads     int   // that waited
	Waited    time.Duration
	After     int // requests that were sent after the start was ready
	Replay    *fs.ReplayStatus
}

// Part names what belongs to an image, or a start, and is sent when it is opened.
func (i *imageView) Part() string { return "image-" + i.ID }

// Part is imageView.Part.
func (v *startView) Part() string { return fmt.Sprintf("start-%d", v.ID) }

// Chart draws the start, as SVG.
func (v *startView) Chart() template.HTML {
	return template.HTML(v.drawing.Inline()) //nolint:gosec // package chart escapes
}

// chartHeight is how high the lines of a drawing are in sum, pixels.
const chartHeight = 1200

func newView(s State) *view {
	v := &view{State: s, Images: imagesOf(s)}
	for _, l := range s.Layers {
		v.Present, v.Total, v.Waiting = v.Present+l.Present, v.Total+l.Total, v.Waiting+l.Waiting
		if l.State == "lazy" {
			v.Lazy++
		}
	}
	for _, x := range s.Starts {
		v.StartViews = append(v.StartViews, s.viewOf(x))
	}
	v.Wrong = problemsOf(s)
	return v
}

// imagesOf groups layers by the image that brought them last.
func imagesOf(s State) []imageView {
	byRef := map[string]*imageView{}
	var all []*imageView
	for _, u := range s.Usage {
		ref := "(of no image)"
		if n := len(u.Refs); n > 0 {
			ref = u.Refs[n-1]
		}
		i := byRef[ref]
		if i == nil {
			i = &imageView{ID: digest.FromString(ref).Encoded()[:12], Ref: ref}
			for _, key := range s.Users[ref] {
				i.Users = append(i.Users, s.name(key))
			}
			byRef[ref] = i
			all = append(all, i)
		}
		i.Layers = append(i.Layers, u)
		i.Size, i.Disk = i.Size+u.Size, i.Disk+u.Disk
		i.Present, i.Total = i.Present+u.Present, i.Total+u.Unpacked
		if u.State == "lazy" {
			i.Lazy++
		} else {
			i.Whole++
		}
	}
	out := make([]imageView, len(all))
	for i, image := range all {
		out[i] = *image
	}
	slices.SortStableFunc(out, func(a, b imageView) int { return cmp.Compare(a.Ref, b.Ref) })
	return out
}

// name is what a person calls the container of a snapshot.
func (s *State) name(key string) string {
	name := s.Name(key)
	if len(name) == 64 && digest.SHA256.Validate(name) == nil {
		name = name[:12]
	}
	return name
}

// viewOf describes a start.
func (s *State) viewOf(x admin.Start) startView {
	v := startView{Start: x, Container: s.name(x.Container)}
	end := cmp.Or(x.Ready, s.Now)
	if x.Created.IsZero() && !x.Pulled.IsZero() {
		end = x.Pulled
	}
	for _, l := range x.Lines {
		if l.Kind == admin.KindRead {
			v.Reads++
			v.Waited += cmp.Or(l.Last, s.Now).Sub(l.Sent)
		} else {
			v.Requests++
			v.Bytes += l.Bytes
		}
		if l.Sent.After(end) {
			v.After++
		}
	}
	v.drawing = drawingOf(x, end)
	for i, r := range s.Replays {
		if r.Manifest == x.Manifest && r.Began.After(x.Began.Add(-time.Second)) &&
			r.Began.Before(x.Began.Add(longest)) {
			v.Replay = &s.Replays[i]
		}
	}
	return v
}

// drawingOf draws a start until end: what came later would make that part small. Reads that wait at
// the same time are one line, because there are hundreds.
func drawingOf(x admin.Start, end time.Time) chart.Waterfall {
	since := func(t time.Time) float64 { return t.Sub(x.Began).Seconds() }
	w := chart.Waterfall{
		Title:  fmt.Sprintf("Requests and reads that waited: %s", x.Ref),
		Height: chartHeight,
		Kinds: []string{admin.KindManifest, admin.KindRead, admin.KindLayer, admin.KindBeside,
			admin.KindLookup, admin.KindToken},
	}
	for _, m := range []struct {
		label string
		at    time.Time
	}{{"pulled", x.Pulled}, {"container", x.Created}, {"ready", x.Ready}} {
		if !m.at.IsZero() {
			w.Marks = append(w.Marks, chart.Mark{Label: m.label, At: since(m.at)})
		}
	}
	reads, at := 0, 0 // that wait together, and where they are drawn
	for _, l := range x.Lines {
		if l.Sent.After(end) {
			continue
		}
		first, last := earlier(l.First, end), earlier(l.Last, end)
		if !l.Over && !l.First.IsZero() {
			last = end
		}
		q := chart.Request{Label: labelOf(l), Kind: l.Kind, Sent: since(l.Sent),
			First: since(first), Last: since(last), Bytes: float64(l.Bytes)}
		if l.Kind == admin.KindRead {
			if reads > 0 && q.Sent <= w.Requests[at].Last {
				reads++
				all := &w.Requests[at]
				all.Label = fmt.Sprintf("%d reads", reads)
				all.Last = max(all.Last, q.Last)
				all.First, all.Bytes = all.Last, all.Bytes+q.Bytes
				continue
			}
			reads, at = 1, len(w.Requests)
		}
		w.Requests = append(w.Requests, q)
	}
	return w
}

// earlier is a time, or end where it is later or not known.
func earlier(t, end time.Time) time.Time {
	if t.IsZero() || t.After(end) {
		return end
	}
	return t
}

// labelOf names what a line is about by the start of its digest.
func labelOf(l admin.Line) string {
	text := l.What[strings.LastIndexByte(l.What, '/')+1:]
	if _, hex, ok := strings.Cut(text, ":"); ok {
		text = hex
	}
	text = text[:min(len(text), 12)]
	if l.Kind == admin.KindRead {
		text = "read " + text
	}
	if l.Status >= 400 {
		text += fmt.Sprintf(" (%d)", l.Status)
	}
	return text
}

// problemsOf gathers what is wrong, the latest first.
func problemsOf(s State) []Problem {
	all := slices.Clone(s.Problems)
	add := func(at time.Time, what, do string) {
		all = append(all, Problem{First: at, Last: at, Count: 1, What: what, Do: do})
	}
	for _, f := range s.Fallbacks {
		what := fmt.Sprintf("%s is not lazy: %s", f.Ref, f.Text())
		add(f.Time, what, cmp.Or(Advice(f.Reason), "mica doctor "+f.Ref+" says what to change."))
	}
	for _, l := range s.Layers {
		if l.LastError != "" {
			add(l.LastErrorTime, fmt.Sprintf("%s, layer %s: %s", l.Ref, show.Short(l.Layer.String()),
				l.LastError), Advice(l.LastError))
		}
	}
	if s.Info.Unlabelled > 0 {
		add(s.Info.Started, fmt.Sprintf("containerd prepared %d layers without naming their image",
			s.Info.Unlabelled), "mica doctor says what containerd's configuration lacks; builds "+
			"have some.")
	}
	if s.Cache.Fault != "" {
		add(s.Now, "the disk is at fault, nothing is fetched in the background: "+s.Cache.Fault,
			Advice(s.Cache.Fault))
	}
	slices.SortStableFunc(all, func(a, b Problem) int { return b.Last.Compare(a.Last) })
	return all[:min(len(all), maxProblems)]
}

// functions are what the templates use.
var functions = template.FuncMap{
	"bytes": func(n any) string {
		switch n := n.(type) {
		case uint64:
			return show.Bytes(int64(n))
		case int64:
			return show.Bytes(n)
		}
		return ""
	},
	"short": func(d digest.Digest) string { return show.Short(d.String()) },
	"clock": func(t time.Time) template.HTML {
		return template.HTML(fmt.Sprintf(`<time datetime="%s">%s</time>`, //nolint:gosec // digits
			t.UTC().Format(time.RFC3339), t.UTC().Format("2 Jan 15:04:05 UTC")))
	},
	"span":    func(from, to time.Time) string { return seconds(to.Sub(from)) },
	"seconds": seconds,
	"after": func(from, t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return fmt.Sprintf("%.3f", t.Sub(from).Seconds())
	},
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
