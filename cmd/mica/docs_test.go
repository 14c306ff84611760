package main

import (
	"testing"

	"github.com/mica-snapshotter/mica/docs"
)

// TestDocs: the command lines in the documentation are mica's.
func TestDocs(t *testing.T) {
	pages, err := docs.Read("../..")
	if err != nil {
		t.Fatal(err)
	}
	n, wrong := docs.Check(pages, "mica", rootCommand)
	for _, w := range wrong {
		t.Error(w)
	}
	if n < 100 {
		t.Errorf("%d command lines are found", n)
	}
}
