package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/doctor"
	"github.com/mica-snapshotter/mica/fs/erofs"
)

// TestMain is the tests, or a child that tries a mount.
func TestMain(m *testing.M) {
	if ran, err := erofs.RunChild(os.Args[1:], os.Stdin, os.Stdout); ran {
		exit(err)
	}
	os.Exit(m.Run())
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"https://ada:hunter2@reg.example/v2/":          "https://ada:REDACTED@reg.example/v2/",
		"Authorization: Bearer eyJhbGciOi.J9-x_y":      "Authorization: Bearer REDACTED",
		`{"password": "correct horse", "user": "ada"}`: `{"password": "REDACTED horse", "user": "ada"}`,
		"?X-Amz-Signature=0123456789abcdef&x=1":        "?X-Amz-Signature=REDACTED&x=1",
		"layer sha256:0123 of reg.example/team/app:1":  "layer sha256:0123 of reg.example/team/app:1",
		`msg="start recorded" ref=reg.example/token:1`: `msg="start recorded" ref=reg.example/token:1`,
	} {
		if got := string(redact([]byte(in))); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// TestSupportWithoutMicad: each part is there, and says what it lacks.
func TestSupportWithoutMicad(t *testing.T) {
	dir := t.TempDir()
	address, config := filepath.Join(dir, "none.sock"), filepath.Join(dir, "config.toml")
	text := "version = 3\n[grpc]\naddress = \"" + address + "\"\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := doctor.Options{Address: address, Micad: admin.NewClient(address), Scratch: dir,
		Config: config}
	var b bytes.Buffer
	if err := support(t.Context(), &b, o); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	r, found := tar.NewReader(z), map[string]string{}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimPrefix(h.Name, "mica-support/")] = string(content)
	}
	if n := len(supportParts(o)); len(found) != n {
		t.Errorf("%d parts, want %d", len(found), n)
	}
	if s := found["layers.json"]; !strings.Contains(s, "no micad at "+address) {
		t.Errorf("layers.json: %s", s)
	}
	if s := found["kernel.txt"]; !strings.HasPrefix(s, "Linux version") {
		t.Errorf("kernel.txt: %s", s)
	}
	if s := found["doctor.json"]; !strings.Contains(s, `"status": "error"`) {
		t.Errorf("doctor.json: %s", s)
	}
}
