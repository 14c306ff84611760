package shaper

import (
	"testing"
	"time"
)

// Requests on one connection are told apart, and timed as the client sees them.
func TestExchanges(t *testing.T) {
	const rtt = 20 * time.Millisecond
	body := random(t, 50_000)
	s, c := serve(t, body, Profile{RTT: rtt})
	for range 2 {
		get(t, c, s, body)
	}
	list := s.Exchanges()
	if len(list) != 2 {
		t.Fatalf("%d exchanges, want 2", len(list))
	}
	for i, e := range list {
		if e.Conn != list[0].Conn || e.Bytes < int64(len(body)) || e.Bytes > int64(len(body))+1000 {
			t.Errorf("exchange %d: %+v", i, e)
		}
		if wait := e.First.Sub(e.Sent); wait < rtt || e.Last.Before(e.First) {
			t.Errorf("exchange %d: first byte after %v, round trip %v: %+v", i, wait, rtt, e)
		}
	}
	if list[1].Sent.Before(list[0].Last) {
		t.Errorf("the second request was sent before the first was answered: %+v", list)
	}
	if s.Reset(); len(s.Exchanges()) != 0 {
		t.Error("exchanges after Reset")
	}
}
