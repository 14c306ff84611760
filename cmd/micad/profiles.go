package main

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/profile"
)

// profiles answers the part of package admin's API that is about this node's profiles.
type profiles struct {
	dir *profile.Dir
	log *slog.Logger
}

// newProfilesHandler returns the handler of admin.PathProfiles and all below it.
func newProfilesHandler(dir *profile.Dir, log *slog.Logger) http.Handler {
	p := &profiles{dir, log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+admin.PathProfiles, p.list)
	mux.HandleFunc("GET "+admin.PathProfiles+"/{manifest}", p.get)
	mux.HandleFunc("PUT "+admin.PathProfiles+"/{manifest}", p.put)
	mux.HandleFunc("DELETE "+admin.PathProfiles+"/{manifest}", p.remove)
	return mux
}

func (p *profiles) list(w http.ResponseWriter, _ *http.Request) {
	out, err := admin.DescribeProfiles(p.dir)
	if err != nil {
		p.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		p.log.Debug("answer was not taken", "err", err)
	}
}

func (p *profiles) get(w http.ResponseWriter, r *http.Request) {
	q, err := p.dir.Load(digest.Digest(r.PathValue("manifest")))
	if err != nil {
		p.fail(w, err)
		return
	}
	b, err := q.Encode()
	if err != nil {
		p.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", profile.MediaType)
	if _, err := w.Write(b); err != nil {
		p.log.Debug("answer was not taken", "err", err)
	}
}

func (p *profiles) put(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, admin.MaxProfile))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	q, err := profile.Decode(b, profile.Limits{})
	if err == nil && q.Manifest.String() != r.PathValue("manifest") {
		err = errors.New("the profile is of manifest " + q.Manifest.String())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.URL.Query().Get("replace") == "true" {
		err = p.dir.Replace(q)
	} else {
		_, err = p.dir.Save(q)
	}
	if err != nil {
		p.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (p *profiles) remove(w http.ResponseWriter, r *http.Request) {
	if err := p.dir.Remove(digest.Digest(r.PathValue("manifest"))); err != nil {
		p.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// fail answers with an error of the folder.
func (p *profiles) fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if errors.Is(err, os.ErrNotExist) {
		code = http.StatusNotFound
	}
	http.Error(w, err.Error(), code)
}
