package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// micaOn runs mica with a node's sockets in its environment, and more of it.
func micaOn(
	t *testing.T, n *node.Node, env []string, args ...string,
) (stdout, stderr string, err error) {
	t.Helper()
	bin, err := node.Binary("mica")
	mustf(t, err, "mica")
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(fixture.Context(t), bin, args...)
	cmd.Env = append(append(os.Environ(), "CONTAINERD_ADDRESS="+n.Address(),
		"CONTAINERD_NAMESPACE="+n.Namespace()), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// pullBy runs mica pull on a node.
func pullBy(t *testing.T, n *node.Node, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return micaOn(t, n, nil, append([]string{"pull", "--hosts-dir", n.HostsDir()}, args...)...)
}

// nothingLeft checks that a node's namespace has no lease, and with empty no image or content.
func nothingLeft(t *testing.T, n *node.Node, empty bool) {
	t.Helper()
	questions := [][]string{{"leases", "ls", "-q"}}
	if empty {
		questions = append(questions, []string{"images", "ls", "-q"}, []string{"content", "ls", "-q"},
			[]string{"content", "active"}, []string{"snapshots", "--snapshotter", mica, "ls"})
	}
	for _, q := range questions {
		fixture.Eventually(t, 10*time.Second, func() string {
			got := strings.TrimSpace(fixture.Ctr(t, n, q...))
			lines := strings.Split(got, "\n")
			if got == "" || len(lines) == 1 && strings.Contains(got, "REF") ||
				len(lines) == 1 && strings.Contains(got, "KEY") {
				return ""
			}
			return fmt.Sprintf("ctr %s: %s", strings.Join(q, " "), got)
		})
	}
}

// readyLine is the last line of a pull.
var readyLine = regexp.MustCompile(
	`^ready in \d+\.\d s, \S+ k?M?B of \S+ MB downloaded, (\d+) of (\d+) layers lazy(.*)\n$`)

// mica pull is lazy, says so in one line, and leaves nothing but the image, whichever content store
// containerd has.
func TestPull(t *testing.T) {
	r, ref, size := debian(t, true)
	for title, opts := range map[string]node.Options{
		"as configured":  {DemandOnly: true},
		"content plugin": {DemandOnly: true, Content: true},
		"bare":           {DemandOnly: true, Bare: true},
	} {
		t.Run(title, func(t *testing.T) {
			n := fixture.Node(t, opts)
			r.ResetTraffic()
			out, said, err := pullBy(t, n, ref)
			mustf(t, err, "pull: "+said)
			if m := readyLine.FindStringSubmatch(out); m == nil || m[1] != m[2] || m[3] != "" {
				t.Errorf("it prints %q", out)
			}
			if strings.Contains(said, "\x1b") || strings.Contains(said, "not lazy") ||
				!strings.Contains(said, ref+": ") {
				t.Errorf("it says %q", said)
			}
			if got := r.Traffic().Down; got > size/20 {
				t.Errorf("%d bytes downloaded of an image of %d", got, size)
			}
			nothingLeft(t, n, false)
			out = fixture.Run(t, n, mica, ref, "program")
			if !strings.HasSuffix(out, images.Ready+"\n") {
				t.Errorf("the program prints %q", out)
			}
			out, said, err = pullBy(t, n, "-q", ref)
			if err != nil || out != ref+"\n" || strings.Contains(said, "layers") {
				t.Errorf("pull -q again: %q, %q, %v", out, said, err)
			}
			out, _, err = pullBy(t, n, ref)
			if m := readyLine.FindStringSubmatch(out); err != nil || m == nil || m[1] != m[2] ||
				m[3] != " ("+m[2]+" were here before)" {
				t.Errorf("the third pull prints %q, %v", out, err)
			}
		})
	}
}

// An image goes into the namespace that is named, and is the namespace's alone.
func TestPullNamespace(t *testing.T) {
	_, ref, _ := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	other := n.Namespace() + "-b"
	_, said, err := pullBy(t, n, "--namespace", other, ref)
	mustf(t, err, "pull: "+said)
	if got := fixture.Ctr(t, n, "images", "ls", "-q"); got != "" {
		t.Errorf("the node's own namespace has %q", got)
	}
	if got := fixture.Ctr(t, n, "--namespace", other, "images", "ls", "-q"); got != ref+"\n" {
		t.Errorf("the namespace has %q", got)
	}
}

// Where no index makes layers lazy, the pull says which and why.
func TestPullWhole(t *testing.T) {
	_, ref, _ := debian(t, false)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	out, said, err := pullBy(t, n, ref)
	mustf(t, err, "pull: "+said)
	if m := readyLine.FindStringSubmatch(out); m == nil || m[1] == m[2] ||
		!strings.Contains(m[3], "downloaded whole") {
		t.Errorf("it prints %q", out)
	}
	if !strings.Contains(said, "mica index create --push "+ref) {
		t.Errorf("it says %q", said)
	}
	psSays(t, n, ref, "micad downloaded", "no index of it was found")
}

// A log-in in docker's config.json is enough where micad has it too. Where micad has none,
// containerd's client downloads the image, and the pull says why.
func TestPullPrivate(t *testing.T) {
	r, ref, size := debian(t, true)
	r.RequireLogin("user", "secret")
	login := "DOCKER_CONFIG=" + dockerConfig(t, r.Host(), "user", "secret")
	for title, c := range map[string]struct {
		client, micad string
		lazy          bool
		says, fails   string
	}{
		"both":        {login, login, true, "", ""},
		"client only": {login, "DOCKER_CONFIG=/nowhere", false, "docker login", ""},
		"nobody": {"DOCKER_CONFIG=/nowhere", "DOCKER_CONFIG=/nowhere", false, "",
			"docker login"},
	} {
		t.Run(title, func(t *testing.T) {
			n := fixture.Node(t, node.Options{DemandOnly: true, MicadEnv: []string{c.micad}})
			r.ResetTraffic()
			out, said, err := micaOn(t, n, []string{c.client}, "pull", "--hosts-dir", n.HostsDir(), ref)
			if c.fails != "" {
				if err == nil || !strings.Contains(said, c.fails) {
					t.Errorf("%v, %q", err, said)
				}
				nothingLeft(t, n, true)
				return
			}
			mustf(t, err, "pull: "+said)
			m := readyLine.FindStringSubmatch(out)
			if m == nil || (m[1] == m[2]) != c.lazy || !strings.Contains(said, c.says) {
				t.Errorf("it prints %q and says %q", out, said)
			}
			if got := r.Traffic().Down; c.lazy != (got < size/20) {
				t.Errorf("%d bytes downloaded of an image of %d", got, size)
			}
			nothingLeft(t, n, false)
			if out := fixture.Run(t, n, mica, ref, "p"); !strings.HasSuffix(out, images.Ready+"\n") {
				t.Errorf("the program prints %q", out)
			}
		})
	}
}

// What cannot be pulled is told with what to do, and leaves nothing.
func TestPullErrors(t *testing.T) {
	r, ref, _ := debian(t, true)
	index := platformsOf(t, r)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	for title, c := range map[string]struct {
		args []string
		want []string
	}{
		"no such image": {[]string{r.Host() + "/nothing:1"}, []string{"has no image", r.Host()}},
		"no such name":  {[]string{"Debian:1:2"}, []string{"docker pull"}},
		"no platform":   {[]string{"--platform", "a/b/c/d", ref}, []string{"--platform"}},
		"other platform": {[]string{"--platform", "linux/s390x", index},
			[]string{"not there for linux/s390x"}},
		"no containerd": {[]string{"--containerd-address", "/nowhere", ref},
			[]string{"systemctl start containerd", "/nowhere"}},
		"no micad": {[]string{"--address", "/nowhere", ref},
			[]string{"no micad at /nowhere", "systemctl start micad"}},
		"not a plugin": {[]string{"--snapshotter", "micah", ref},
			[]string{"no snapshotter micah", "overlayfs", "[proxy_plugins.mica]", "restart containerd"}},
		"no such registry": {[]string{"--give-up", "2s", "127.0.0.1:1/a:1"},
			[]string{"connection refused"}},
	} {
		t.Run(title, func(t *testing.T) {
			out, said, err := pullBy(t, n, c.args...)
			if err == nil || out != "" {
				t.Errorf("it succeeds with %q", out)
			}
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("it says %q, not %q", said, want)
				}
			}
		})
	}
	nothingLeft(t, n, true)
}

// platformsOf pushes an image for amd64 and arm64, and returns its reference.
func platformsOf(t *testing.T, r *registry.Registry) string {
	t.Helper()
	index := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"amd64", "arm64"} {
		tar, err := images.Tar(images.File("arch", 0o644, []byte(arch)))
		mustf(t, err, "tar")
		img, err := images.FromTars(nil, tar)
		mustf(t, err, "image")
		c, err := img.ConfigFile()
		mustf(t, err, "configuration")
		c = c.DeepCopy()
		c.Architecture = arch
		img, err = mutate.ConfigFile(img, c)
		mustf(t, err, "configuration")
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	tag, err := name.ParseReference(r.Direct()+"/platforms:test", name.Insecure)
	mustf(t, err, "name")
	mustf(t, remote.WriteIndex(tag, index), "push")
	return r.Host() + "/platforms:test"
}

// An image for another platform than this machine's is pulled and listed.
func TestPullPlatform(t *testing.T) {
	r := fixture.Registry(t)
	ref := platformsOf(t, r)
	other := map[string]string{"amd64": "linux/arm64", "arm64": "linux/amd64"}[runtime.GOARCH]
	n := fixture.Node(t, node.Options{DemandOnly: true})
	_, said, err := pullBy(t, n, "--platform", other, ref)
	mustf(t, err, "pull: "+said)
	out, said, err := micaOn(t, n, nil, "images", "--json")
	var rows []struct {
		Platform, Snapshotter string
		Layers                []struct{ State string }
	}
	mustf(t, errors.Join(err, json.Unmarshal([]byte(out), &rows)), "images: "+said)
	if len(rows) != 1 || rows[0].Platform != other || rows[0].Snapshotter != mica ||
		len(rows[0].Layers) != 1 || rows[0].Layers[0].State != "whole" {
		t.Errorf("images: %+v", rows)
	}
}

// A pull that is interrupted while micad downloads leaves neither lease nor content.
func TestPullInterrupted(t *testing.T) {
	r, ref, _ := debian(t, false)
	r.SetProfile(shaper.Profile{Rate: 4 << 20})
	n := fixture.Node(t, node.Options{DemandOnly: true})
	bin, err := node.Binary("mica")
	mustf(t, err, "mica")
	var said bytes.Buffer
	cmd := exec.CommandContext(fixture.Context(t), bin, "pull", "--namespace", n.Namespace(),
		"--containerd-address", n.Address(), ref)
	cmd.Stderr = &said
	mustf(t, cmd.Start(), "pull")
	fixture.Eventually(t, 30*time.Second, func() string {
		if r.Traffic().Down < 2<<20 {
			return "nothing is downloaded"
		}
		return ""
	})
	mustf(t, cmd.Process.Signal(syscall.SIGINT), "interrupt")
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "interrupted") {
		t.Errorf("%v: %q", err, &said)
	}
	nothingLeft(t, n, true)
}

// mica images tells of each image how it is there and which containers use it.
func TestImages(t *testing.T) {
	_, ref, _ := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	_, said, err := pullBy(t, n, ref)
	mustf(t, err, "pull: "+said)
	type row struct {
		Names       []string
		Namespace   string
		Snapshotter string
		Size        int64    `json:"size_bytes"`
		Present     int64    `json:"present_bytes"`
		UsedBy      []string `json:"used_by"`
		Layers      []struct{ State string }
	}
	list := func(args ...string) (rows []row) {
		t.Helper()
		out, said, err := micaOn(t, n, nil, append([]string{"images", "--json"}, args...)...)
		mustf(t, err, "images: "+said)
		mustf(t, json.Unmarshal([]byte(out), &rows), "images")
		return rows
	}
	rows := list()
	if len(rows) != 1 || len(rows[0].Names) != 1 || rows[0].Names[0] != ref ||
		rows[0].Namespace != n.Namespace() || rows[0].Snapshotter != mica ||
		rows[0].Size < 1<<20 || rows[0].Present > rows[0].Size/10 || len(rows[0].UsedBy) != 0 {
		t.Errorf("after the pull: %+v", rows)
	}
	for _, l := range rows[0].Layers {
		if l.State != "lazy" {
			t.Errorf("a layer is %s", l.State)
		}
	}
	c, err := n.StartContainer(fixture.Context(t), mica, ref, "user-of-it", nil, nil, "sleep", "100")
	mustf(t, err, "start")
	t.Cleanup(func() {
		mustf(t, c.Remove(context.WithoutCancel(t.Context())), "remove")
	})
	fixture.Ctr(t, n, "images", "tag", ref, "other.test/name:1")
	fixture.Ctr(t, n, "--namespace", n.Namespace()+"-o", "images", "pull", "--plain-http",
		"--snapshotter", "overlayfs", ref)
	rows = list("--namespace", "")
	if len(rows) != 2 || len(rows[0].Names) != 2 || len(rows[0].UsedBy) != 1 ||
		rows[0].UsedBy[0] != "user-of-it" || rows[1].Snapshotter != "overlayfs" ||
		rows[1].Present != rows[1].Size || rows[1].Layers[0].State != "ordinary" {
		t.Errorf("two namespaces: %+v", rows)
	}
	out, _, err := micaOn(t, n, []string{"CONTAINERD_NAMESPACE="}, "images")
	for _, want := range []string{`IMAGE +NAMESPACE +LAYERS +SIZE +ON NODE +USED BY`,
		regexp.QuoteMeta(ref) + ` +\S+ +\d+ lazy(, \d whole)? +\S+ MB +\S+ MB \(\d+%\) +user-of-it`,
		`other.test/name:1 +\S+ +the same`, `\d+ ordinary \(overlayfs\) .* \(100%\) +-`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the table has no %q: %v\n%s", want, err, out)
		}
	}
	// The same files in another compression are the same snapshots.
	_, said, err = micaOn(t, n, nil, "fetch", ref)
	mustf(t, err, "fetch: "+said)
	fixture.Ctr(t, n, "images", "convert", "--oci", "--uncompress", ref, "a.test/converted:1")
	if rows = list("--namespace", n.Namespace()); rows[1].Names[0] != "a.test/converted:1" ||
		rows[1].Layers[0].State == "ordinary" || rows[1].Present == rows[1].Size {
		t.Errorf("converted: %+v", rows[1])
	}
}

// MICA_ADDRESS names micad's socket for every command, and a flag wins over it.
func TestAddress(t *testing.T) {
	n := fixture.Node(t, node.Options{})
	for _, address := range []string{n.MicadAddress(), "unix://" + n.MicadAddress()} {
		for _, command := range [][]string{{"ps"}, {"du"}, {"gc"}, {"verify"}, {"profile", "ls"},
			{"images"}} {
			_, said, err := micaOn(t, n, []string{"MICA_ADDRESS=" + address}, command...)
			mustf(t, err, strings.Join(command, " ")+": "+said)
			_, said, err = micaOn(t, n, []string{"MICA_ADDRESS=" + filepath.Join(n.Dir, "none")},
				command...)
			if err == nil || !strings.Contains(said, "no micad at") {
				t.Errorf("%s: %v, %q", command, err, said)
			}
			_, said, err = micaOn(t, n, []string{"MICA_ADDRESS=/none"},
				append(command, "--address", address)...)
			mustf(t, err, strings.Join(command, " ")+": "+said)
		}
	}
}
