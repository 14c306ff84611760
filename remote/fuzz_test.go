package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// transport is a function that is a http.RoundTripper.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// FuzzRangeResponse reads a range from a server that answers anything. What is returned without an
// error must be what the answer claims to be: the wanted bytes of the blob, all of them.
func FuzzRangeResponse(f *testing.F) {
	const size, off, n = 100, 30, 20
	blob := randomBytes(size)
	for _, s := range []string{
		"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 30-49/100\r\nContent-Length: " +
			"20\r\n\r\n" + string(blob[30:50]),
		"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 30-39/*\r\nContent-Length: " +
			"10\r\n\r\n" + string(blob[30:40]),
		"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 30-49/101\r\nContent-Length: " +
			"20\r\n\r\n" + string(blob[30:50]),
		"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + string(blob),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + string(blob) +
			"\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 100\r\n\r\n" + string(blob),
		"HTTP/1.1 307 Temporary Redirect\r\nLocation: " +
			"http://cdn.test/x?se=2030-01-01\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer " +
			"realm=\"http://auth.test/\",scope=\"a\"\r\n\r\n",
		"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	claim := regexp.MustCompile(`^(?i:bytes) 0*30-0*([0-9]+)/(\*|0*100)$`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		asked := 0
		var last *http.Response
		answers := transport(func(r *http.Request) (*http.Response, error) {
			if asked++; asked > 3 {
				cancel()
				return nil, errors.New("enough")
			}
			resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), r)
			last = resp
			return resp, err
		})
		c, err := New(Config{
			PlainHTTP: true, MinBackoff: time.Nanosecond, MaxBackoff: time.Nanosecond,
			Wrap: func(http.RoundTripper) http.RoundTripper { return answers },
		})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, n)
		d := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: size}
		if err := mustImage(t, c, "reg.test/a:1").Blob(d).ReadAt(ctx, p, off); err != nil {
			return
		}
		// The same answer again, judged in the plainest way.
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), last.Request)
		if err != nil {
			t.Fatalf("bytes from no answer: %v", err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		switch {
		case resp.StatusCode == http.StatusPartialContent &&
			claim.MatchString(resp.Header.Get("Content-Range")):
			if len(body) < n && asked == 1 || !bytes.HasPrefix(body, p[:min(n, len(body))]) {
				t.Errorf("%q from %q", p, raw)
			}
		case resp.StatusCode == http.StatusOK && len(body) >= off+n:
			if !bytes.Equal(p, body[off:off+n]) {
				t.Errorf("%q from %q", p, raw)
			}
		default:
			t.Errorf("bytes from %q", raw)
		}
	})
}

func FuzzReferrers(f *testing.F) {
	f.Add(referrersJSON(referrer("a", "b")), `<?n=2>; rel="next"`)
	f.Add(`{"manifests":[{"digest":"sha256:x","size":-1}]}`, `<http://other.test/>; rel=next`)
	f.Add(`{"manifests":null}`, `<`)
	base, _ := url.Parse("https://reg.test/v2/a/referrers/x?ns=y")
	f.Fuzz(func(t *testing.T, text, link string) {
		index, err := parseReferrers([]byte(text))
		if err == nil {
			for _, d := range index.Manifests {
				if d.Digest.Validate() != nil || d.Size < 0 || d.Size > MaxManifest {
					t.Errorf("entry %+v", d)
				}
			}
		}
		u := nextPage(http.Header{"Link": {link}}, base, "y")
		if u != nil &&
			(u.Host != base.Host || u.Scheme != base.Scheme || u.Query().Get("ns") == "") {
			t.Errorf("next page %v", u)
		}
	})
}

// BenchmarkReadAt is the throughput of 1 MiB reads over a loopback connection, four at a time.
func BenchmarkReadAt(b *testing.B) {
	g := newRegistry("bench")
	blob := randomBytes(64 << 20)
	d := g.add(blob)
	srv := newServer(b, g)
	c, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	i, err := c.Image(srv + "/a/b:1")
	if err != nil {
		b.Fatal(err)
	}
	bl := i.Blob(d)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	b.SetParallelism(2)
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 1<<20)
		for k := int64(0); pb.Next(); k++ {
			if err := bl.ReadAt(b.Context(), p, k%63<<20); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
