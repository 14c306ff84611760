package shaper

import "time"

// Exchange is what a client sent on a connection and what came back until it
// sent again: with HTTP/1.1, a request and its answer. Times are the client's.
type Exchange struct {
	Conn  string    // the connection's address at the server (its RemoteAddr)
	Sent  time.Time // the request's first bytes left the client
	First time.Time // the answer's first bytes arrived; zero: none did yet
	Last  time.Time // its last ones so far
	Bytes int64     // of the answer, protocol headers included
}

// exchanges notes the exchanges of one connection in the shaper's list.
type exchanges struct {
	s    *Shaper
	conn string
	now  *Exchange // the one under way; guarded by s.mu
}

// sent notes that the client has sent something.
func (e *exchanges) sent() {
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	if e.now == nil || e.now.Bytes > 0 { // else: more of the same request
		e.now = &Exchange{Conn: e.conn, Sent: time.Now()}
		e.s.exchanges = append(e.s.exchanges, e.now)
	}
}

// arrived notes n bytes that the client is given.
func (e *exchanges) arrived(n int) {
	e.s.down.Add(int64(n))
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	if e.now == nil {
		return // a server that speaks first
	}
	e.now.Last = time.Now()
	if e.now.Bytes == 0 {
		e.now.First = e.now.Last
	}
	e.now.Bytes += int64(n)
}

// Exchanges returns those that began since the last Reset, in that order.
func (s *Shaper) Exchanges() []Exchange {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Exchange, len(s.exchanges))
	for i, e := range s.exchanges {
		list[i] = *e
	}
	return list
}
