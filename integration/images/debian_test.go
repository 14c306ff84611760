package images

import "testing"

func TestDebian(t *testing.T) {
	img, err := Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := Size(img)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Layers) != Layers || Layers != 6 || size < 50e6 {
		t.Errorf("%d layers of %d bytes, want 6 and over 50 MB", len(m.Layers), size)
	}
	for i, l := range m.Layers {
		t.Logf("layer %d: %d bytes", i, l.Size)
	}
}
