package ranges

import (
	"fmt"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/mica-snapshotter/mica/remote/registry"
)

// examine tells from an answer's head whether its body can be bytes off to off+n of a blob of the
// given size. skip is the number of bytes of the body before off, upTo the offset of the first byte
// that the body does not bring (at most off+n).
func examine(r *http.Response, off, n, size int64) (skip, upTo int64, err error) {
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "text/html" ||
		strings.HasPrefix(t, "multipart/") {
		return 0, 0, fmt.Errorf("%w: it is %s", registry.ErrNotBlob, t)
	}
	switch r.StatusCode {
	case http.StatusOK:
		if r.ContentLength >= 0 && r.ContentLength != size {
			return 0, 0, fmt.Errorf("%w: it has %d bytes, the blob %d", registry.ErrNotBlob, r.ContentLength,
				size)
		}
		if err := encoded(r, r.ContentLength, size); err != nil {
			return 0, 0, err
		}
		return off, off + n, nil
	case http.StatusPartialContent:
		first, last, total, err := parseContentRange(r.Header.Get("Content-Range"))
		switch {
		case err != nil:
			return 0, 0, fmt.Errorf("%w: %w", registry.ErrNotBlob, err)
		case first != off || last >= size:
			return 0, 0, fmt.Errorf("%w: asked for bytes %d-%d, got %d-%d", registry.ErrNotBlob, off,
				off+n-1, first, last)
		case total >= 0 && total != size:
			return 0, 0, fmt.Errorf("%w: it has %d bytes in all, the blob %d", registry.ErrNotBlob, total,
				size)
		case r.ContentLength >= 0 && r.ContentLength != last-first+1:
			return 0, 0, fmt.Errorf("%w: %d bytes sent as bytes %d-%d", registry.ErrNotBlob, r.ContentLength,
				first, last)
		}
		if err := encoded(r, total, size); err != nil {
			return 0, 0, err
		}
		return 0, min(last+1, off+n), nil
	}
	return 0, 0, fmt.Errorf("%w: status %d", registry.ErrNotBlob, r.StatusCode)
}

// encoded returns an error for an answer that is encoded. One that has as many bytes in all as the
// blob, though nobody has asked for an encoding, is the blob as it was stored: object stores keep a
// layer with "Content-Encoding: gzip" because it is compressed. Its bytes are compared with digests
// anyway.
func encoded(r *http.Response, total, size int64) error {
	e := r.Header.Get("Content-Encoding")
	if e == "" || e == "identity" || total == size {
		return nil
	}
	return fmt.Errorf("%w: it is encoded (%s)", registry.ErrNotBlob, registry.Printable(e, 40))
}

// contentRange is "bytes FIRST-LAST/TOTAL" (RFC 9110, 14.4), of numbers that an int64 holds.
var contentRange = regexp.MustCompile(`^(?i:bytes) (\d{1,18})-(\d{1,18})/(\*|\d{1,18})$`)

// parseContentRange reads a Content-Range header. total is -1 for "*".
func parseContentRange(v string) (first, last, total int64, err error) {
	total = -1
	m := contentRange.FindStringSubmatch(v)
	if m != nil {
		first, _ = strconv.ParseInt(m[1], 10, 64) // at most 18 digits
		last, _ = strconv.ParseInt(m[2], 10, 64)
		if m[3] != "*" {
			total, _ = strconv.ParseInt(m[3], 10, 64)
		}
	}
	if m == nil || last < first || total >= 0 && last >= total {
		return 0, 0, 0, fmt.Errorf("its range is %q", registry.Printable(v, 60))
	}
	return first, last, total, nil
}
