package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Checkout returns the repository's root: the first directory above the
// working directory that has script/tools.sh.
func Checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "script", "tools.sh")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not inside a checkout of Mica", dir)
		}
	}
}

// Path returns the value of PATH for all that is started here: the checkout's
// bin (make build) and build/bin (make tools), then the caller's.
func Path() (string, error) {
	root, err := Checkout()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "bin") + ":" + filepath.Join(root, "build", "bin") + ":" + os.Getenv("PATH"), nil
}

// Binary returns where a program stands on Path; its error says what to do.
func Binary(name string) (string, error) {
	path, err := Path()
	if err != nil {
		return "", err
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range filepath.SplitList(path) {
		if p := filepath.Join(dir, name); executable(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w (run make build tools)", name, exec.ErrNotFound)
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// environment is this process's, with Path and without tracing exporters.
func environment() ([]string, error) {
	path, err := Path()
	if err != nil {
		return nil, err
	}
	return append(os.Environ(), "PATH="+path, "OTEL_TRACES_EXPORTER=none", "NOTIFY_SOCKET="), nil
}
