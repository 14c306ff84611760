package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

var (
	// ErrNotFound is wrapped by errors for content that no host of the registry has.
	ErrNotFound = errors.New("not found in the registry")
	// ErrUnauthorized is wrapped by errors for content that every host refused, with credentials
	// fetched anew.
	ErrUnauthorized = errors.New("the registry refuses access; give Mica credentials for it: " +
		"`docker login` as the user that runs it, or a config.json in $DOCKER_CONFIG or named in " +
		"Mica's configuration")
	// ErrCorrupt is wrapped by errors for content that does not have the digest or size that it is
	// known by.
	ErrCorrupt = errors.New("content does not match its digest")
	// ErrTooLarge is wrapped by errors for content larger than the caller's or the package's limit.
	ErrTooLarge = errors.New("content is larger than allowed")

	errStalled = errors.New("no byte arrived in time")
	errNotBlob = errors.New("the answer is not the blob")
	errBusy    = errors.New("the registry has asked to be left alone for a while")
	// errCleartext is the error of a host that is asked by https and redirects to http.
	errCleartext = errors.New("redirect from https to an address without it")
)

// statusError is an answer that says no. It holds no query string: signed URLs are secrets.
type statusError struct {
	method, host, path string
	code               int
	detail             string        // the registry's own message, cut short
	retryAfter         time.Duration // from the Retry-After header; 0: none
	target             bool          // the answer is a redirect target's, not the registry's
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s %s%s: %d %s", e.method, e.host, e.path, e.code, http.StatusText(e.code))
	if e.detail != "" {
		s += ": " + e.detail
	}
	if errors.Is(e, ErrUnauthorized) {
		s += "; " + ErrUnauthorized.Error()
	}
	return s
}

func (e *statusError) Unwrap() error {
	switch e.code {
	case http.StatusNotFound, http.StatusGone:
		return ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		if !e.target {
			return ErrUnauthorized
		}
	}
	return nil
}

// permanent tells whether asking the same host again cannot help.
func (e *statusError) permanent() bool {
	switch e.code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusRequestedRangeNotSatisfiable:
		return false
	case http.StatusNotFound, http.StatusGone:
		return true
	}
	// A signed URL that is refused is asked for anew; a registry that refuses means it.
	return e.code >= 400 && e.code < 500 && !e.target
}

// newStatusError describes an answer and reads at most 1 KiB of its body for the reason.
func newStatusError(r *reply, target bool, now time.Time) *statusError {
	e := &statusError{
		method: r.Request.Method, host: r.Request.URL.Host, path: r.Request.URL.Path,
		code: r.StatusCode, retryAfter: parseRetryAfter(r.Header.Get("Retry-After"),
			now), target: target,
	}
	if strings.Contains(r.Header.Get("Content-Type"), "json") ||
		strings.Contains(r.Header.Get("Content-Type"), "text/plain") {
		// a reason that cannot be read is no reason
		b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<10))
		e.detail = printable(string(b), 200)
	}
	return e
}

// printable makes one line of foreign text, at most n bytes.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// parseRetryAfter reads a Retry-After header (RFC 9110, 10.2.3): seconds or a date. 0 if there is
// none or it is past.
func parseRetryAfter(v string, now time.Time) time.Duration {
	if v == "" {
		return 0
	}
	if s, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil {
		if s <= 0 {
			return 0
		}
		return time.Duration(min(s, 1<<20)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil && t.After(now) {
		return t.Sub(now)
	}
	return 0
}

// isPermanent tells whether err cannot pass by asking the same host again.
func isPermanent(err error) bool {
	var s *statusError
	if errors.As(err, &s) {
		return s.permanent()
	}
	var cert *tls.CertificateVerificationError
	return errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrNotFound) ||
		errors.Is(err, ErrTooLarge) || errors.Is(err, errCleartext) || errors.As(err, &cert)
}

// bare strips the URL from an error of net/http: it may be signed, and the caller names host and
// path itself.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// ended is the error of an operation that its context stopped: what stopped it, and what kept it
// from succeeding.
func ended(ctx context.Context, last error) error {
	cause := context.Cause(ctx)
	if last == nil {
		return cause
	}
	return fmt.Errorf("%w; last error: %w", cause, last)
}
