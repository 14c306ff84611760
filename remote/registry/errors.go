package registry

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

	// ErrNotBlob is wrapped by errors for answers that are not what was asked for, as a page for
	// people is not.
	ErrNotBlob = errors.New("the answer is not the blob")

	errStalled = errors.New("no byte arrived in time")
	errBusy    = errors.New("the registry has asked to be left alone for a while")
	// errCleartext is the error of a host that is asked by https and redirects to http.
	errCleartext = errors.New("redirect from https to an address without it")
)

// StatusError is an answer that says no. It holds no query string: signed URLs are secrets.
type StatusError struct {
	method, host, path string
	Code               int
	Detail             string        // the registry's own message, cut short
	retryAfter         time.Duration // from the Retry-After header; 0: none
	Target             bool          // the answer is a redirect target's, not the registry's
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s%s: %d %s", e.method, e.host, e.path, e.Code, http.StatusText(e.Code))
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if errors.Is(e, ErrUnauthorized) {
		s += "; " + ErrUnauthorized.Error()
	}
	return s
}

func (e *StatusError) Unwrap() error {
	switch e.Code {
	case http.StatusNotFound, http.StatusGone:
		return ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		if !e.Target {
			return ErrUnauthorized
		}
	}
	return nil
}

// permanent tells whether asking the same host again cannot help.
func (e *StatusError) permanent() bool {
	switch e.Code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusRequestedRangeNotSatisfiable:
		return false
	case http.StatusNotFound, http.StatusGone:
		return true
	}
	// A signed URL that is refused is asked for anew; a registry that refuses means it.
	return e.Code >= 400 && e.Code < 500 && !e.Target
}

// newStatusError describes an answer and reads at most 1 KiB of its body for the reason.
func newStatusError(r *Reply, target bool, now time.Time) *StatusError {
	e := &StatusError{
		method: r.Request.Method, host: r.Request.URL.Host, path: r.Request.URL.Path,
		Code: r.StatusCode, retryAfter: parseRetryAfter(r.Header.Get("Retry-After"),
			now), Target: target,
	}
	if strings.Contains(r.Header.Get("Content-Type"), "json") ||
		strings.Contains(r.Header.Get("Content-Type"), "text/plain") {
		// a reason that cannot be read is no reason
		b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<10))
		e.Detail = Printable(string(b), 200)
	}
	return e
}

// Printable makes one line of foreign text, at most n bytes.
func Printable(s string, n int) string {
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

// IsPermanent tells whether err cannot pass by asking the same host again.
func IsPermanent(err error) bool {
	var s *StatusError
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

// NoEOF returns err, or what stands for the end of bytes that should go on.
func NoEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
