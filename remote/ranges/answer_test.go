package ranges

import (
	"fmt"
	"testing"
)

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-9/10")
	f.Add("bytes 5-4/*")
	f.Add("bytes 0-18446744073709551615/99999999999999999999")
	f.Fuzz(func(t *testing.T, v string) {
		a, b, total, err := parseContentRange(v)
		if err == nil && (a < 0 || b < a || (total >= 0 && b >= total) || total < -1) {
			t.Errorf("%q: %d-%d/%d", v, a, b, total)
		}
		if err == nil && total >= 0 {
			x, y, z, err := parseContentRange(fmt.Sprintf("bytes %d-%d/%d", a, b, total))
			if err != nil || x != a || y != b || z != total {
				t.Errorf("%q is not stable", v)
			}
		}
	})
}
