package registry

import (
	"fmt"
	"net/http"
	"time"
)

// noticeAfter is how long a request goes unanswered before somebody is told.
const noticeAfter = time.Second

// noticing tells when a request, for a token too, has not been answered for a while.
type noticing struct {
	next http.RoundTripper
	tell func(string)
}

// RoundTrip implements http.RoundTripper.
func (n noticing) RoundTrip(r *http.Request) (*http.Response, error) {
	what := fmt.Sprintf("waiting for %s://%s to answer %s %s",
		r.URL.Scheme, r.URL.Host, r.Method, r.URL.Path)
	t := time.AfterFunc(noticeAfter, func() { n.tell(what) })
	defer t.Stop()
	return n.next.RoundTrip(r)
}
