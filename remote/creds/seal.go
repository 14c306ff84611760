package creds

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// KeyCredential is the name of the systemd credential that is the key, where there is one
// (systemd.exec(5), LoadCredentialEncrypted=: sealed to the machine's TPM, say).
const KeyCredential = "mica-credentials-key"

// A sealed file, of at most maxConfig bytes:
//
//	offset  bytes
//	     0      7  "MICACRD"
//	     7      1  version, 1
//	     8     12  nonce, new each time
//	    20      n  content, encrypted by AES-256-GCM; bytes 0 to 7 are authenticated with it
//	  20+n     16  its tag
const (
	sealMagic   = "MICACRD\x01"
	minKeyBytes = 32
)

var errSeal = errors.New("it is damaged, or was sealed with another key")

// sealer reads and writes sealed files.
type sealer struct{ aead cipher.AEAD }

// openKey reads the key, or makes one. The AES key is the file's SHA-256.
func openKey(dir, path string) (*sealer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if path == "" {
		path = filepath.Join(dir, "key")
		if given := os.Getenv("CREDENTIALS_DIRECTORY"); given != "" {
			if _, err := os.Stat(filepath.Join(given, KeyCredential)); err == nil {
				path = filepath.Join(given, KeyCredential)
			}
		}
	}
	removeTemporary(dir)
	if err := makeKey(path); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key %s can be read by others than its owner: chmod 600", path)
	}
	b, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	if len(b) < minKeyBytes {
		return nil, fmt.Errorf("key %s has %d bytes, at least %d are needed", path, len(b),
			minKeyBytes)
	}
	sum := sha256.Sum256(b)
	block, err := aes.NewCipher(sum[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead}, nil
}

// removeTemporary removes the temporary files that a crash has left.
func removeTemporary(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, atomicfile.Leftovers)) // the pattern is right
	for _, f := range left {
		_ = os.Remove(f)
	}
}

// makeKey writes a random key where there is none. (rand.Read does not fail.)
func makeKey(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key := make([]byte, minKeyBytes)
	_, _ = rand.Read(key)
	return atomicfile.ReplaceBytes(path, 0o600, key)
}

// read returns a sealed file's content, nil where there is no file.
func (s *sealer) read(path string) ([]byte, error) {
	b, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.open(b)
}

func (s *sealer) open(b []byte) ([]byte, error) {
	head := len(sealMagic) + s.aead.NonceSize()
	if len(b) < head || !bytes.HasPrefix(b, []byte(sealMagic)) {
		return nil, errSeal
	}
	out, err := s.aead.Open(nil, b[len(sealMagic):head], b[head:], b[:len(sealMagic)])
	if err != nil {
		return nil, errSeal
	}
	return out, nil
}

// write seals content into a file, in place of the former one at once.
func (s *sealer) write(path string, content []byte) error {
	nonce := make([]byte, s.aead.NonceSize())
	_, _ = rand.Read(nonce)
	head := append([]byte(sealMagic), nonce...)
	sealed := s.aead.Seal(head, nonce, content, []byte(sealMagic))
	return atomicfile.ReplaceBytes(path, 0o600, sealed)
}
