package main

import "testing"

func TestBroughtText(t *testing.T) {
	for _, tc := range []struct {
		brought, read int64
		want          string
	}{
		{0, 0, "nothing had to be brought"},
		{0, 2099200, "nothing had to be brought"},
		{1000, 500, "1.0 kB brought, of which 50% was read"},
		{1000, 1000, "1.0 kB brought, of which 100% was read"},
	} {
		if got := broughtText(tc.brought, tc.read); got != tc.want {
			t.Errorf("%d, %d: %s", tc.brought, tc.read, got)
		}
	}
}
