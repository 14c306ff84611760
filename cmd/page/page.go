// Package page is the page that micad shows of itself: the node at a glance, what the latest starts
// waited for, the images, and what went wrong with what helps.
//
// # The data's way
//
//	pulls, containers, requests, waits ─▶ Starts ─┐
//	log ─▶ Problems ──────────────────────────────┼─▶ State ─▶ views ─▶ page.html ─▶ GET /
//	layers, usage, cache, replays ────────────────┘               /events, /part/ID ◀──┘
//
// The page has sections, and what takes much room in them, drawings and tables of layers, is a part
// that comes when it is opened: so 1,000 layers cost no more than their images. A script follows
// /events: server-sent events, each the HTML of a section that has changed. Without a script parts
// are links. Nothing can be changed through the page, and nothing comes from another host.
//
// What images and registries are called and say is foreign: html/template and package chart escape
// it, and a Content-Security-Policy allows the page's own style and script alone.
//
// # Concurrency
//
// All is safe for parallel use. A page that is open costs one State each interval.
package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // page.html
	"encoding/base64"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mica-snapshotter/mica/cmd/page/chart"
)

const (
	interval = 2 * time.Second // between two looks at the node, for each page that is open
	maxOpen  = 16              // pages that follow events
)

//go:embed page.html
var source string

// Paths are those of the page, as patterns of http.ServeMux below whatever it is served at.
var Paths = []string{"{$}", "events", "part/"}

// Handler serves the page at Paths, and takes GET alone.
type Handler struct {
	state func(ctx context.Context) State
	html  *template.Template
	csp   string
	open  chan struct{} // a token for each page that follows events
	mux   http.ServeMux
}

// New returns a handler of the page that shows what state returns, which is called in parallel.
func New(state func(ctx context.Context) State) *Handler {
	h := &Handler{state: state, open: make(chan struct{}, maxOpen)}
	style, script := between(source, "<style>", "</style>"), between(source, "<script>", "</script>")
	style = strings.Replace(style, "/* chart */", chart.Style, 1)
	text := strings.Replace(source, "/* chart */", chart.Style, 1)
	h.html = template.Must(template.New("page").Funcs(functions).Parse(text))
	h.csp = fmt.Sprintf("default-src 'none'; connect-src 'self'; img-src data:; "+
		"style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'; "+
		"frame-ancestors 'none'", hash(style), hash(script))
	h.mux.HandleFunc("GET /{$}", h.page)
	h.mux.HandleFunc("GET /events", h.events)
	h.mux.HandleFunc("GET /part/{id}", h.part)
	return h
}

// between returns the text after begin and before end.
func between(text, begin, end string) string {
	_, text, _ = strings.Cut(text, begin)
	text, _, _ = strings.Cut(text, end)
	return text
}

// hash names an inline style or script in a Content-Security-Policy.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for k, v := range map[string]string{
		"Content-Security-Policy": h.csp, "X-Content-Type-Options": "nosniff",
		"Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
		"Cross-Origin-Resource-Policy": "same-origin",
	} {
		w.Header().Set(k, v)
	}
	h.mux.ServeHTTP(w, r)
}

// section is a part of the page as it was sent.
type section struct {
	Name, Label string
	HTML        template.HTML
}

// Hash tells two states of a section apart.
func (s section) Hash() string { return hash(string(s.HTML)) }

// view renders the sections of the page for the state that there is now.
func (h *Handler) view(ctx context.Context) (*view, error) {
	v := newView(h.state(ctx))
	v.Sections = []section{{Name: "glance"}, {Name: "starts", Label: "Latest starts"},
		{Name: "problems", Label: "What went wrong"}, {Name: "images", Label: "Images"}}
	for i := range v.Sections {
		s := &v.Sections[i]
		var b strings.Builder
		if err := h.html.ExecuteTemplate(&b, s.Name, v); err != nil {
			return nil, err
		}
		s.HTML = template.HTML(b.String()) //nolint:gosec // a template's
	}
	return v, nil
}

func (h *Handler) page(w http.ResponseWriter, r *http.Request) {
	v, err := h.view(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h.answer(w, "page", v)
}

// part answers with the drawing and the table of a start, or with the layers of an image.
func (h *Handler) part(w http.ResponseWriter, r *http.Request) {
	v := newView(h.state(r.Context()))
	id := r.PathValue("id")
	for i := range v.StartViews {
		if x := &v.StartViews[i]; x.Part() == id {
			h.answer(w, "start", x)
			return
		}
	}
	for i := range v.Images {
		if x := &v.Images[i]; x.Part() == id {
			h.answer(w, "layers", x)
			return
		}
	}
	http.Error(w, "micad does not remember it any more", http.StatusNotFound)
}

func (h *Handler) answer(w http.ResponseWriter, name string, v any) {
	var b bytes.Buffer
	if err := h.html.ExecuteTemplate(&b, name, v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // a client that has gone has gone
}

// events sends the sections that are not as the client has them, until it goes. The query has the
// hashes of those that the page came with.
func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	select {
	case h.open <- struct{}{}:
		defer func() { <-h.open }()
	default:
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	sent := map[string]string{}
	for name := range r.URL.Query() {
		sent[name] = r.URL.Query().Get(name)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		v, err := h.view(r.Context())
		if err != nil {
			return
		}
		for _, s := range v.Sections {
			if sum := s.Hash(); sum != sent[s.Name] {
				sent[s.Name] = sum
				if event(w, s.Name, string(s.HTML)) != nil {
					return
				}
			}
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// event writes a server-sent event.
// https://html.spec.whatwg.org/multipage/server-sent-events.html
func event(w http.ResponseWriter, name, text string) error {
	text = strings.NewReplacer("\r", "", "\n", "\ndata: ").Replace(text)
	_, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, text)
	return err
}

// Guard lets requests through that name a host which is one of these, this machine, or an IP
// address: a page of another origin whose name was made to lead here (DNS rebinding) has a name of
// its own.
func Guard(next http.Handler, hosts ...string) http.Handler {
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	hosts = append(hosts, "localhost")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		if net.ParseIP(host) == nil && !slices.ContainsFunc(hosts, func(h string) bool {
			return strings.EqualFold(h, host)
		}) {
			http.Error(w, "this is not the host of that name: use its address",
				http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
