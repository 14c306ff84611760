package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// configure returns what a configuration file with that text, and these flags, mean.
func configure(t *testing.T, text string, flags ...string) (config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &options{}
	if err := command(o).ParseFlags(append([]string{"--config", path}, flags...)); err != nil {
		t.Fatal(err)
	}
	return o.config()
}

func TestPathsAreClean(t *testing.T) {
	dir := t.TempDir() + "/none"
	for in, want := range map[string]string{
		dir + "/":         dir,
		dir + "/x/y/":     dir + "/x/y",
		dir + "//x///y":   dir + "/x/y",
		dir + "/./x/../y": dir + "/y",
	} {
		for name, get := range map[string]func(c config) string{
			"root":               func(c config) string { return c.Root },
			"address":            func(c config) string { return c.Address },
			"containerd_address": func(c config) string { return c.Containerd },
		} {
			c, err := configure(t, name+` = "`+in+`"`)
			if err != nil || get(c) != want {
				t.Errorf("%s = %q is %q, %v; want %q", name, in, get(c), err, want)
			}
		}
		c, err := configure(t, "", "--root", in, "--address", in+"/s")
		if err != nil || c.Root != want || c.Address != want+"/s" {
			t.Errorf("flags: %q, %q, %v", c.Root, c.Address, err)
		}
	}
	c, err := configure(t, `containerd_address = "unix:///run/x.sock"
[remote]
config_path = "/etc/a/:/etc//b"
docker_configs = ["/root//config.json"]`)
	if err != nil || c.Containerd != "/run/x.sock" || c.Remote.ConfigPath != "/etc/a:/etc/b" ||
		c.Remote.DockerConfigs[0] != "/root/config.json" {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = configure(t, `containerd_address = "none"`)
	if err != nil || c.Containerd != noContainerd {
		t.Errorf("%q, %v", c.Containerd, err)
	}
}

// wrongConfigs are configurations that cannot be right, and what is said of them.
var wrongConfigs = map[string]string{
	`root = ""`:                              "root = ",
	`root = "rel/x"`:                         "root = ",
	`root = "./x"`:                           "root = ",
	`root = "~/x"`:                           "root = ",
	`root = "/"`:                             "root = ",
	`root = "/a:b"`:                          "root: ",
	`root = "/dev/null"`:                     "no folder",
	`root = "/dev/null/x"`:                   "not a directory",
	`address = ""`:                           "address = ",
	`address = "/etc"`:                       "no socket",
	`address = "/dev/null"`:                  "no socket",
	`address = "/dev/null/s"`:                "not a directory",
	`address = "micad.sock"`:                 "address = ",
	`address = "/` + long + `"`:              "107 bytes",
	`containerd_address = "containerd.sock"`: "containerd_address = ",
	`metrics_address = "9620"`:               "metrics_address = ",
	`metrics_address = "127.0.0.1:none"`:     "metrics_address = ",
	`page_address = "9621"`:                  "page_address = ",
	`rooot = "/x"`:                           "unknown keys",
	"[buildkit]\nsocket = \"s\"":             "buildkit.socket = ",
	"address = '/run/s'\n[buildkit]\nsocket = '/run//s'": "another socket",
	"[remote]\nconfig_path = \"certs.d\"":                "remote.config_path = ",
	"[credentials]\nkey_file = \"key\"":                  "credentials.key_file = ",
	"[remote]\ndocker_configs = [\"c.json\"]":            "remote.docker_configs = ",
	"containerd_address = 'none'\ncontent_store = '/c'":  "content_store needs a containerd",
	"containerd_address = 'none'\n[kubernetes]\nkubeconfig = '/k'": "kubeconfig needs a " +
		"containerd",
	"[credentials]\ncri_image_service = \"containerd.sock\"":  "cri_image_service = ",
	`content_store = "content"`:                               "content_store = ",
	`mount_options = ["volatile,lowerdir=/"]`:                 `"lowerdir=/"`,
	"page_address = '[::1]:80'\nmetrics_address = '[::1]:80'": "another than metrics_address",
}

const long = "0123456789/123456789/123456789/123456789/123456789/" +
	"123456789/123456789/123456789/123456789/123456789/123456789/123456789"

func TestWrongPaths(t *testing.T) {
	for text, want := range wrongConfigs {
		_, err := configure(t, text)
		var wrong configError
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := configure(t, "", "--root", ""); err == nil {
		t.Error("--root of an empty variable is the default root")
	}
}

// TestWrongConfigEnds: micad, and micad keep, end at once with what is wrong, and make nothing.
func TestWrongConfigEnds(t *testing.T) {
	for _, text := range []string{`root = ""`, `root = "rel"`, `address = "sock"`, `rooot = "/x"`} {
		dir := t.TempDir()
		config := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"--config", config}, {"keep", "--config", config}} {
			cmd := exec.Command("/proc/self/exe", args...)
			cmd.Dir, cmd.Env = dir, append(os.Environ(), mainEnv+"=1")
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != exitConfig {
				t.Errorf("%s, %v: %v\n%s", text, args, err, out)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: made %v, %v", text, left, err)
		}
	}
}
