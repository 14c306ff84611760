package targz

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"github.com/mica-snapshotter/mica/index/tartree"
)

// TestBomb scans a megabyte that decompresses to a gigabyte: no more of it is written than is
// allowed.
func TestBomb(t *testing.T) {
	var blob bytes.Buffer
	z := gzip.NewWriter(&blob)
	if _, err := io.CopyN(z, zeros{}, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	const limit = 8 << 20
	var written counter
	_, err := Scan(t.Context(), &blob, Options{Device: &written, DeviceSize: limit})
	if !errors.Is(err, tartree.ErrLimit) {
		t.Errorf("error %v", err)
	}
	if written > limit {
		t.Errorf("%d bytes were written, %d are allowed", written, limit)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
