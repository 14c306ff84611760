package images

import (
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/mica-snapshotter/mica/integration/known"
)

// Known is an image of the tree below /dir, whose files are spread evenly over
// so many layers. extra is put before the files of the first layer.
func Known(tree known.Tree, dir string, layers int, extra ...Entry) (v1.Image, error) {
	var tars [][]byte
	for l := range layers {
		tar, err := KnownTar(tree, dir, l, layers, extra...)
		if err != nil {
			return nil, err
		}
		tars, extra = append(tars, tar), nil
	}
	return FromTars(nil, tars...)
}

// KnownTar is the uncompressed tar of one of so many layers, after the entries extra.
func KnownTar(tree known.Tree, dir string, layer, layers int, extra ...Entry) ([]byte, error) {
	entries := append(extra[:len(extra):len(extra)], Dir(dir))
	for _, d := range tree.Dirs() {
		entries = append(entries, Dir(dir+"/"+d))
	}
	for i := layer; i < tree.Files; i += layers {
		content := make([]byte, tree.Length(i))
		tree.Fill(content, i, 0)
		entries = append(entries, File(dir+"/"+tree.Name(i), 0o644, content))
	}
	return Tar(entries...)
}
