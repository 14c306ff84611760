package inflate

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	kflate "github.com/klauspost/compress/flate"
)

// benchTar is a tar of files of /usr/lib, up to 48 MiB: what layers are made of.
var benchTar = sync.OnceValues(func() ([]byte, error) {
	const limit = 48 << 20
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.WalkDir("/usr/lib", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil || len(data) > 4<<20 {
			return err
		}
		if b.Len()+len(data) > limit {
			return filepath.SkipAll
		}
		if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644,
			Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	return b.Bytes(), err
})

// BenchmarkInflate compares with other decoders on the same stream: their MB/s
// of output are the ratios to report.
func BenchmarkInflate(b *testing.B) {
	data, err := benchTar()
	if err != nil {
		b.Fatal(err)
	}
	src := deflate(b, 6, data)
	b.Logf("%d bytes, %.2f : 1", len(data), float64(len(data))/float64(len(src)))
	run := func(name string, decode func() error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := decode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	var d Decoder
	dst := make([]byte, len(data))
	run("mica", func() error {
		d.Reset(0)
		d.SetHistory(nil)
		_, _, s, err := d.Decode(dst, 0, src)
		if err == nil && s != StreamEnd && s != OutputFull {
			return io.ErrUnexpectedEOF
		}
		return err
	})
	if !bytes.Equal(dst, data) {
		b.Fatal("output differs")
	}
	// As a scan does it: 256 KiB at a time behind 32 KiB of history, stopping
	// at every block.
	buf := make([]byte, windowSize+256<<10)
	run("mica-pieces", func() error {
		d.Reset(0)
		d.StopAtBlocks = true
		defer func() { d.StopAtBlocks = false }()
		w, at := 0, 0
		for {
			nw, r, s, err := d.Decode(buf, w, src[at:])
			if err != nil {
				return err
			}
			w = nw
			at += r
			switch s {
			case OutputFull:
				copy(buf, buf[w-windowSize:])
				w = windowSize
			case StreamEnd:
				return nil
			case NeedInput:
				return io.ErrUnexpectedEOF
			}
		}
	})
	in := bytes.NewReader(nil)
	std := flate.NewReader(in)
	run("compress-flate", func() error {
		in.Reset(src)
		if err := std.(flate.Resetter).Reset(in, nil); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, std)
		return err
	})
	kp := kflate.NewReader(in)
	run("klauspost-flate", func() error {
		in.Reset(src)
		if err := kp.(kflate.Resetter).Reset(in, nil); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, kp)
		return err
	})
}
