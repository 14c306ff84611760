package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/snapshotter"
)

// maxSocket is the longest path of a socket, bytes: sun_path of unix(7) with a zero at its end.
const maxSocket = 107

// cleanPaths makes all paths absolute and clean, or says which one cannot be. Nothing is made on
// disk.
func (c *config) cleanPaths() error {
	if c.Containerd != noContainerd {
		if err := cleanSocket("containerd_address", &c.Containerd); err != nil {
			return err
		}
	}
	lists := strings.Split(c.Remote.ConfigPath, ":")
	errs := []error{
		c.cleanRoot(),
		cleanListener("address", &c.Address),
		c.cleanBuilder(),
		cleanSocket("credentials.cri_image_service", &c.Credentials.ImageService),
		clean("credentials.kubelet_provider_config", &c.Credentials.ProviderConfig),
		clean("credentials.kubelet_provider_bin_dir", &c.Credentials.ProviderBinDir),
		clean("credentials.key_file", &c.Credentials.Key),
		clean("content_store", &c.Content),
		clean("kubernetes.kubeconfig", &c.Kubernetes.Kubeconfig),
	}
	for i := range lists {
		errs = append(errs, clean("remote.config_path", &lists[i]))
	}
	c.Remote.ConfigPath = strings.Join(lists, ":")
	for i := range c.Remote.DockerConfigs {
		errs = append(errs, clean("remote.docker_configs", &c.Remote.DockerConfigs[i]))
	}
	errs = append(errs, checkTCP("metrics_address", c.MetricsAddress),
		checkTCP("page_address", c.PageAddress))
	if c.PageAddress != "" && c.PageAddress == c.MetricsAddress {
		errs = append(errs, fmt.Errorf("page_address = %q: it has to be another than metrics_address",
			c.PageAddress))
	}
	return errors.Join(errs...)
}

// cleanRoot checks what everything lies below.
func (c *config) cleanRoot() error {
	if c.Root == "" {
		return fmt.Errorf("root = %q: write the path of a folder, such as %q", c.Root, defaultRoot)
	}
	if err := clean("root", &c.Root); err != nil {
		return err
	}
	if c.Root == "/" {
		return errors.New(`root = "/": write a folder of micad's own`)
	}
	if err := snapshotter.CheckRoot(c.Root); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	return isOr("root", c.Root, os.FileMode.IsDir, "folder")
}

// cleanListener checks where micad listens. What lies there is replaced, so it has to be a socket.
func cleanListener(key string, path *string) error {
	if *path == "" {
		return fmt.Errorf(`%s = "": write the path of the socket to listen at, as containerd has it`,
			key)
	}
	if err := cleanSocket(key, path); err != nil {
		return err
	}
	isSocket := func(m os.FileMode) bool { return m&os.ModeSocket != 0 }
	return isOr(key, *path, isSocket, "socket")
}

// cleanBuilder checks where micad listens for BuildKit's plugin, if it does.
func (c *config) cleanBuilder() error {
	socket := &c.BuildKit.Socket
	if *socket == "" {
		return nil
	}
	if err := cleanListener("buildkit.socket", socket); err != nil {
		return err
	}
	if *socket == c.Address {
		return fmt.Errorf("buildkit.socket = %q: it has to be another socket than address", *socket)
	}
	return nil
}

// isOr checks that there is something of a kind at path, or that it can be made.
func isOr(key, path string, kind func(os.FileMode) bool, name string) error {
	st, err := os.Stat(path)
	switch {
	case err == nil && !kind(st.Mode()):
		return fmt.Errorf("%s = %q: it is no %s", key, path, name)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err,
		unix.ENAMETOOLONG):
		return fmt.Errorf("%s = %q: %w", key, path, err)
	}
	return nil
}

// clean makes a path clean that is absolute, or empty.
func clean(key string, path *string) error {
	if *path == "" {
		return nil
	}
	if !filepath.IsAbs(*path) {
		return fmt.Errorf("%s = %q: write an absolute path", key, *path)
	}
	*path = filepath.Clean(*path)
	return nil
}

// cleanSocket is clean for the path of a socket, which may be written as a URL as for the kubelet.
func cleanSocket(key string, path *string) error {
	*path = strings.TrimPrefix(*path, "unix://")
	if err := clean(key, path); err != nil {
		return err
	}
	if len(*path) > maxSocket {
		return fmt.Errorf("%s = %q: a socket's path has %d bytes at most", key, *path, maxSocket)
	}
	return nil
}

// checkTCP checks where something is served over TCP, if it is.
func checkTCP(key, address string) error {
	if address == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return fmt.Errorf(`%s = %q: write HOST:PORT, such as "127.0.0.1:9620": %w`, key, address,
			err)
	}
	return nil
}
