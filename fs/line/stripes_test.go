package line

import "testing"

// TestStriped: a request over several connections brings the same bytes, and gives all back.
func TestStriped(t *testing.T) {
	b := New(0, 0)
	h, src := b.Host(""), newBlob()
	h.Answered(stripeRTT)
	if got := string(readAll(t, h, 150_000, Replay, src.open)); got != src.b[:150_000] {
		t.Error("wrong bytes")
	}
	if n := src.calls.Load(); n != 2 {
		t.Errorf("%d requests", n)
	}
	nothingTaken(t, b, h)
}
