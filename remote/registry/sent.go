package registry

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Sent is an HTTP request, and what has come of it so far.
type Sent struct {
	Repository string // as in references: "docker.io/library/debian"
	Host       string // that was asked: a redirect leads elsewhere, by a request of its own
	// What is the path below the repository, "blobs/sha256:…", also where a redirect has led
	// elsewhere; "token" at a token server. Queries are left out, because they can hold secrets.
	What  string
	Range string // header; "": there is none
	At    time.Time
	// First and Last are when the answer's headers, and its last bytes so far, were here.
	First, Last time.Time
	Status      int   // of the answer; 0: there is none
	Bytes       int64 // of the answer's body, that were read
	Over        bool  // nothing more will come
	Err         string
}

// tokenRequest is Sent.What of a request to a token server.
const tokenRequest = "token"

// Request is a request that is being followed. A nil one is not.
type Request struct {
	mu   sync.Mutex
	sent Sent
}

// Sent returns what is known now.
func (q *Request) Sent() Sent {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.sent
}

// sending counts a request that is sent, and shows it to Config.Follow.
func (r *Repository) sending(host, what, ranged string) *Request {
	r.request(what == tokenRequest)
	if r.client.Follow == nil {
		return nil
	}
	q := &Request{sent: Sent{Repository: r.String(), Host: host, What: what, Range: ranged,
		At: time.Now()}}
	r.client.Follow(q)
	return q
}

// answered notes an answer's status.
func (q *Request) answered(status int) {
	q.note(func(s *Sent) {
		s.Status, s.First = status, time.Now()
		s.Last = s.First
	})
}

// received notes bytes of the answer.
func (q *Request) received(n int) {
	q.note(func(s *Sent) {
		if n > 0 {
			s.Bytes, s.Last = s.Bytes+int64(n), time.Now()
		}
	})
}

// ended notes that nothing more will come, and why not.
func (q *Request) ended(err error) {
	q.note(func(s *Sent) {
		if s.Over = true; err != nil && !errors.Is(err, io.EOF) {
			s.Err = err.Error()
		}
	})
}

// token notes the end of a request for a token.
func (q *Request) token(err error) {
	status := tokenStatus(err)
	if err == nil {
		status = http.StatusOK
	} else {
		err = tokenError(err)
	}
	if status != 0 {
		q.answered(status)
	}
	q.ended(err)
}

func (q *Request) note(fn func(*Sent)) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.sent.Over {
		fn(&q.sent)
	}
}
