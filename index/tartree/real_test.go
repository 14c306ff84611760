package tartree_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/tartree"
)

// TestGNUTar compares what GNU tar writes, in each of its formats.
func TestGNUTar(t *testing.T) {
	src := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(src, name) }
	check(os.WriteFile(at("file"), bytes.Repeat([]byte("content "), 1000), 0o640))
	check(os.Mkdir(at("dir"), 0o700))
	check(os.Link(at("file"), at("dir/hard")))
	check(os.Symlink("../file", at("dir/soft")))
	check(unix.Mkfifo(at("fifo"), 0o600))
	check(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(unix.Setxattr(at("file"), "user.key", []byte("value"), 0))
	hole, err := os.Create(at("hole"))
	check(err)
	for _, off := range []int64{0, 1 << 20, 3<<20 + 512} {
		_, err := hole.WriteAt(bytes.Repeat([]byte{byte('a' + off>>20)}, 5000), off)
		check(err)
	}
	check(hole.Truncate(8 << 20))
	check(hole.Close())

	for name, args := range map[string][]string{
		"ustar":      {"--format=ustar"},
		"gnu":        {"--format=gnu"},
		"posix":      {"--format=posix", "--xattrs"},
		"sparse-0.0": {"--format=posix", "--sparse", "--sparse-version=0.0"},
		"sparse-0.1": {"--format=posix", "--sparse", "--sparse-version=0.1"},
		"sparse-1.0": {"--format=posix", "--sparse", "--sparse-version=1.0", "--xattrs"},
		"sparse-gnu": {"--format=gnu", "--sparse"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := exec.CommandContext(t.Context(), "tar",
				append(args, "-C", src, "-c", ".")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			extra := name == "sparse-gnu"
			if refusal := compare(t, data, extra); (refusal != nil) != extra {
				t.Errorf("containerd: %v", refusal)
			}
			want, err := os.ReadFile(at("hole"))
			if err != nil {
				t.Fatal(err)
			}
			if s := scan(t, data); !bytes.Equal(read(t, s, "hole"), want) {
				t.Error("wrong content of the sparse file")
			}
		})
	}
}

// BenchmarkScan scans a tar of up to 256 MiB of this machine's /usr/lib.
func BenchmarkScan(b *testing.B) {
	data, entries := realTar(b, "/usr/lib", 256<<20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tartree.Scan(bytes.NewReader(data), tartree.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*entries), "ns/entry")
	b.ReportMetric(float64(entries), "entries")
}

// BenchmarkScanSmall scans 10,000 files of 100 bytes: nothing but headers.
func BenchmarkScanSmall(b *testing.B) {
	const files = 10_000
	var data bytes.Buffer
	if _, err := data.ReadFrom(manyFiles(files)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(data.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tartree.Scan(bytes.NewReader(data.Bytes()), tartree.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*files), "ns/entry")
}

func realTar(b *testing.B, dir string, size int) (data []byte, entries int) {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if buf.Len() > size || info.Mode()&fs.ModeSocket != 0 {
			return nil
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(p); err != nil {
				return err
			}
		}
		hdr, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		hdr.Name, hdr.Format = p, tar.FormatPAX
		if err := w.WriteHeader(hdr); err != nil {
			return err
		}
		entries++
		if !info.Mode().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(p)
		if err == nil {
			_, err = w.Write(content)
		}
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		b.Fatal(err)
	}
	return buf.Bytes(), entries
}
