package proof

import (
	"testing"

	"github.com/mica-snapshotter/mica/fs/store"
)

func TestRepositoryOf(t *testing.T) {
	for ref, want := range map[string]string{
		"docker.io/library/debian:12":           "docker.io/library/debian",
		"localhost:5000/a/b":                    "localhost:5000/a/b",
		"localhost:5000/a/b:tag@sha256:0123":    "localhost:5000/a/b",
		"registry.example/team/app@sha256:0123": "registry.example/team/app",
		"registry.example:443/team/app:v1":      "registry.example:443/team/app",
		"":                                      "",
	} {
		if got := RepositoryOf(ref); got != want {
			t.Errorf("repository of %q is %q, want %q", ref, got, want)
		}
	}
}

// TestStanding: what a record says of the layer.
func TestStanding(t *testing.T) {
	by := []string{"registry.example/a"}
	for name, c := range map[string]struct {
		rec  store.Record
		want Standing
		is   bool
	}{
		"made here":             {want: Proved, is: true},
		"of another tar":        {rec: store.Record{DiffID: "sha256:other"}, want: Proved},
		"of a repository":       {rec: store.Record{Vouchers: by}, want: Endorsed},
		"and wrong":             {rec: store.Record{Vouchers: by, Disproved: true}, want: Disproved},
		"wrong, put right once": {rec: store.Record{Disproved: true}, want: Disproved},
	} {
		t.Run(name, func(t *testing.T) {
			if c.rec.DiffID == "" {
				c.rec.DiffID = "sha256:this"
			}
			if got := Of(&c.rec); got != c.want {
				t.Errorf("standing %v, want %v", got, c.want)
			}
			if Is(&c.rec, "sha256:this") != c.is {
				t.Errorf("it is what the diffID names: %v, want %v", !c.is, c.is)
			}
			if c.rec.Vouchers != nil && (!Vouches(&c.rec, by[0]) || Vouches(&c.rec, "registry.example")) {
				t.Error("it is not known who vouches for it")
			}
		})
	}
}
