package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestAddRef(t *testing.T) {
	const a, b = "reg.test:5000/a", "reg.test:5000/b"
	for _, tc := range []struct{ add, want string }{
		{a + ":1", a + ":1"},
		{a + ":1 " + a + ":1", a + ":1"},
		{a + ":1 " + b + ":1 " + a + ":1", b + ":1 " + a + ":1"},
		{a, a},
		{a + " " + a + ":1", a + ":1"}, // the name of an image whose pull has begun before
		{a + ":1 " + a, a + ":1"},
		{a + " " + a + "@sha256:00", a + "@sha256:00"},
		{a + " " + a + "/more:1", a + " " + a + "/more:1"},
		{a + " " + a + "b:1", a + " " + a + "b:1"},
		{a + " " + b + " " + a + ":1", b + " " + a + ":1"},
		{"reg.test reg.test:5000/a:1", "reg.test reg.test:5000/a:1"},
	} {
		var refs []string
		for _, ref := range strings.Fields(tc.add) {
			refs = AddRef(refs, ref)
		}
		if got := strings.Join(refs, " "); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.add, got, tc.want)
		}
	}
	var refs []string
	for i := range maxRefs + 3 {
		refs = AddRef(refs, fmt.Sprintf("%s:%d", a, i))
	}
	if len(refs) != maxRefs || slices.Contains(refs, a+":2") || refs[maxRefs-1] != fmt.Sprintf("%s:%d", a, maxRefs+2) {
		t.Errorf("%v", refs)
	}
}
