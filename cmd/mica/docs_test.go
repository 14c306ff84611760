package main

import (
	"testing"

	"github.com/mica-snapshotter/mica/docs/docstest"
)

// TestDocs: the command lines in the documentation are mica's.
func TestDocs(t *testing.T) {
	pages, err := docstest.Read("../..")
	if err != nil {
		t.Fatal(err)
	}
	n, wrong := docstest.Check(pages, "mica", rootCommand)
	for _, w := range wrong {
		t.Error(w)
	}
	if n < 100 {
		t.Errorf("%d command lines are found", n)
	}
}
