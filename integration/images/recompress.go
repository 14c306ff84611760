package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// ZstdLayer is the media type of a layer in zstd.
const ZstdLayer types.MediaType = "application/vnd.oci.image.layer.v1.tar+zstd"

// WithBlob returns an image with another blob for the tar of one of its layers: what encode writes.
func WithBlob(
	img v1.Image, layer int, mediaType types.MediaType, encode func(w io.Writer,
		tar io.Reader) error,
) (v1.Image, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	tar, err := layers[layer].Uncompressed()
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	var blob bytes.Buffer
	if err := encode(&blob, tar); err != nil {
		return nil, err
	}
	layers[layer] = recoded{layers[layer], blob.Bytes(), mediaType}
	return assemble(config.Config.Cmd, layers)
}

// Zstd writes a tar as frames of zstd that hold so many bytes each.
func Zstd(frameSize int64) func(w io.Writer, tar io.Reader) error {
	return func(w io.Writer, tar io.Reader) error {
		for {
			z, err := zstd.NewWriter(w)
			if err != nil {
				return err
			}
			n, err := io.CopyN(z, tar, frameSize)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if err := z.Close(); err != nil || n < frameSize {
				return err
			}
		}
	}
}

// recoded is a layer with another blob. It implements v1.Layer.
type recoded struct {
	v1.Layer
	blob      []byte
	mediaType types.MediaType
}

func (l recoded) Digest() (v1.Hash, error) {
	sum := sha256.Sum256(l.blob)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}, nil
}
func (l recoded) Size() (int64, error)                { return int64(len(l.blob)), nil }
func (l recoded) MediaType() (types.MediaType, error) { return l.mediaType, nil }
func (l recoded) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.blob)), nil
}
