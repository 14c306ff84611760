package main

import (
	"bytes"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/pull"
)

// Where micad keeps its things unless told otherwise.
const (
	defaultConfig = "/etc/micad/config.toml"
	defaultRoot   = "/var/lib/micad"
)

// minCache is the smallest quota, bytes: what readers have in hand at a time has to fit.
const minCache = 64 << 20

// noContainerd is the address of no containerd.
const noContainerd = "none"

// config is micad's configuration file. docs/config.md describes the keys.
type config struct {
	Root     string `toml:"root"`
	Address  string `toml:"address"`
	Mode     string `toml:"mode"`
	DirectIO bool   `toml:"direct_io"`
	LogLevel level  `toml:"log_level"`
	// Containerd is the socket of the containerd that is asked for images and tells of pulls;
	// empty: Credentials.ImageService or else containerd's default, noContainerd: none is asked.
	Containerd string `toml:"containerd_address"`
	// Content is the folder of containerd's content store where micad is its content plugin; empty:
	// micad is none.
	Content  string `toml:"content_store"`
	BuildKit struct {
		// Socket is that of BuildKit's plugin; empty: there is none.
		Socket string `toml:"socket"`
	} `toml:"buildkit"`
	// MetricsAddress serves Prometheus' /metrics over TCP; empty: over the socket alone.
	MetricsAddress string `toml:"metrics_address"`
	// PageAddress serves the page over TCP; empty: over the socket alone.
	PageAddress string `toml:"page_address"`
	// RemapIDs maps the IDs of user namespaces by idmapped mounts. It has to agree with the
	// capability remap-ids in containerd's configuration, or IDs are mapped twice or not at all.
	RemapIDs bool `toml:"remap_ids"`
	// MountOptions are added to those of containers' overlay mounts.
	MountOptions []string `toml:"mount_options"`
	ReadDeadline duration `toml:"read_deadline"`
	PullDeadline duration `toml:"pull_deadline"`
	Fetch        struct {
		Fill      fetch.Policy `toml:"fill"`
		Bandwidth string       `toml:"bandwidth"`
		Requests  int          `toml:"max_requests"`
		MaxLayer  string       `toml:"max_layer"`
	} `toml:"fetch"`
	Cache struct {
		Size  string   `toml:"size"`
		Scrub duration `toml:"scrub_interval"`
	} `toml:"cache"`
	Index struct {
		Trust string `toml:"trust"`
	} `toml:"index"`
	Limits struct {
		Entries   int    `toml:"entries"`
		IndexSize string `toml:"index_size"`
		LayerSize string `toml:"layer_size"`
		Scans     string `toml:"scan_memory"`
	} `toml:"limits"`
	Remote struct {
		ConfigPath    string   `toml:"config_path"`
		DockerConfigs []string `toml:"docker_configs"`
		Downloads     int      `toml:"max_concurrent_downloads"`
	} `toml:"remote"`
	Credentials struct {
		ProviderConfig string `toml:"kubelet_provider_config"`
		ProviderBinDir string `toml:"kubelet_provider_bin_dir"`
		ImageService   string `toml:"cri_image_service"`
		Key            string `toml:"key_file"`
	} `toml:"credentials"`
	Kubernetes struct {
		// Kubeconfig says how Kubernetes is told of images that were not lazy; empty: it is not.
		Kubeconfig string `toml:"kubeconfig"`
	} `toml:"kubernetes"`
}

// duration is a time.Duration written as text ("90s"). It is no integer, or TOML's would be
// nanoseconds.
type duration struct{ d time.Duration }

// UnmarshalText parses what time.ParseDuration takes.
func (d *duration) UnmarshalText(text []byte) (err error) {
	if d.d, err = time.ParseDuration(string(text)); err != nil {
		return fmt.Errorf(`%q: write a duration such as "90s", "5m" or "168h"`, text)
	}
	return nil
}

// MarshalText writes what UnmarshalText takes.
func (d duration) MarshalText() ([]byte, error) { return []byte(d.d.String()), nil }

// level is a slog.Level written as text, and no integer.
type level struct{ slog.Level }

// UnmarshalText parses the levels' names.
func (l *level) UnmarshalText(text []byte) error {
	if err := l.Level.UnmarshalText(text); err != nil {
		return fmt.Errorf("%q: use debug, info, warn or error", text)
	}
	return nil
}

func defaults() config {
	c := config{
		Root:         defaultRoot,
		Address:      admin.DefaultAddress,
		Mode:         "auto",
		RemapIDs:     true,
		ReadDeadline: duration{5 * time.Minute},
		PullDeadline: duration{time.Minute},
	}
	c.MountOptions, c.Remote.DockerConfigs = []string{}, []string{}
	c.Fetch.Fill, c.Fetch.Requests = fetch.All, fetch.DefaultFillRequests
	c.Index.Trust = "repository"
	c.Remote.ConfigPath = "/etc/containerd/certs.d"
	c.Remote.Downloads = 4
	return c
}

// readConfig reads the file at path over the defaults. A missing file is an
// error only where the user named it.
func readConfig(path string, named bool) (config, error) {
	c := defaults()
	b, err := os.ReadFile(path)
	if errors.Is(err, iofs.ErrNotExist) && !named {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		var unknown *toml.StrictMissingError
		if errors.As(err, &unknown) {
			return c, fmt.Errorf("configuration %s: unknown keys:\n%s", path, unknown.String())
		}
		return c, fmt.Errorf("configuration %s: %w", path, explained(err))
	}
	return c, c.check(path)
}

// explained says where a file is wrong, and of a wrong type what to do, without names of Go's.
func explained(err error) error {
	var at *toml.DecodeError
	if !errors.As(err, &at) {
		return err
	}
	row, _ := at.Position()
	text, wrongType := strings.TrimPrefix(at.Error(), "toml: "), false
	if text, _, wrongType = strings.Cut(text, " into struct field "); wrongType {
		text += ": write it as `micad config default` does"
	}
	return fmt.Errorf("line %d: %s: %s", row, strings.Join(at.Key(), "."), text)
}

// fetchOptions returns what the section fetch says.
func (c *config) fetchOptions() (fetch.Options, error) {
	o := fetch.Options{FillRequests: c.Fetch.Requests}
	var err error
	if o.Fill, err = fetch.ParsePolicy(string(c.Fetch.Fill)); err != nil {
		return o, fmt.Errorf("fetch.%w", err)
	}
	if o.Bandwidth, err = size("fetch.bandwidth", c.Fetch.Bandwidth); err != nil {
		return o, err
	}
	if o.MaxLayer, err = size("fetch.max_layer", c.Fetch.MaxLayer); err != nil {
		return o, err
	}
	if c.Fetch.Requests < 0 {
		return o, errors.New("fetch.max_requests must not be negative")
	}
	return o, nil
}

// cacheOptions returns what the section cache says.
func (c *config) cacheOptions() (o cache.Options, err error) {
	o.Scrub = c.Cache.Scrub.d
	if o.Scrub < 0 {
		return o, errors.New("cache.scrub_interval must not be negative")
	}
	text := c.Cache.Size
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		o.Percent, err = strconv.Atoi(strings.TrimSpace(percent))
		if err != nil || o.Percent < 1 || o.Percent > 100 {
			return o, fmt.Errorf(`cache.size = %q: write a part of the filesystem such as "30%%", `+
				`or a number of bytes such as "20GiB"`, text)
		}
		return o, nil
	}
	if text == "" {
		return o, nil
	}
	if o.Size, err = bytesize(text); err != nil || o.Size < minCache {
		return o, fmt.Errorf(`cache.size = %q: write a number of bytes such as "20GiB", 64MiB at least, `+
			`or a part of the filesystem such as "30%%"`, text)
	}
	return o, nil
}

// limits returns what the section limits says.
func (c *config) limits() (l pull.Limits, err error) {
	if l.Entries = c.Limits.Entries; l.Entries < 0 {
		return l, errors.New("limits.entries must not be negative")
	}
	if l.IndexSize, err = size("limits.index_size", c.Limits.IndexSize); err != nil {
		return l, err
	}
	if l.ScanMemory, err = size("limits.scan_memory", c.Limits.Scans); err != nil {
		return l, err
	}
	l.LayerSize, err = size("limits.layer_size", c.Limits.LayerSize)
	return l, err
}

// size parses a number of bytes ("20MB", "4GiB"); "" is 0, no limit.
func size(key, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := bytesize(text)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf(`%s = %q: write a number of bytes such as "20MB" or "4GiB"`, key, text)
	}
	return n, nil
}

// bytesize parses units of 1000 (MB) and of 1024 (MiB).
func bytesize(text string) (int64, error) {
	if strings.HasSuffix(strings.ToLower(text), "ib") {
		return units.RAMInBytes(text)
	}
	return units.FromHumanSize(text)
}

func (c *config) check(path string) error {
	switch c.Mode {
	case "auto", "erofs", "fuse", "local":
	default:
		return fmt.Errorf(`configuration %s: mode = %q: use "auto", "erofs", "fuse" or "local"`,
			path, c.Mode)
	}
	switch c.Index.Trust {
	case "repository", "local":
	default:
		return fmt.Errorf(`configuration %s: index.trust = %q: use "repository" or "local"`, path,
			c.Index.Trust)
	}
	if _, err := c.fetchOptions(); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	if _, err := c.limits(); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	if _, err := c.cacheOptions(); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	for key, value := range map[string]string{
		"content_store": c.Content, "kubernetes.kubeconfig": c.Kubernetes.Kubeconfig,
	} {
		if value != "" && c.Containerd == noContainerd {
			return fmt.Errorf(`configuration %s: %s needs a containerd: containerd_address is "%s"`,
				path, key, noContainerd)
		}
	}
	if c.ReadDeadline.d <= 0 || c.PullDeadline.d <= 0 {
		return fmt.Errorf("configuration %s: read_deadline and pull_deadline must be positive "+
			"durations", path)
	}
	for _, o := range strings.Split(strings.Join(c.MountOptions, ","), ",") {
		switch name, _, _ := strings.Cut(o, "="); name {
		case "lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir":
			return fmt.Errorf("configuration %s: mount_options has %q: micad chooses the folders",
				path, o)
		}
	}
	if err := c.checkCredentials(); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	if c.Remote.Downloads < 1 {
		return fmt.Errorf("configuration %s: remote.max_concurrent_downloads must be at least 1",
			path)
	}
	return nil
}
