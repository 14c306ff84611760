package page

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

func TestMain(m *testing.M) { fixture.Main(m) }

// near is how far apart micad and the network may see the same moment on a busy machine, and
// connected how long before the network micad sees a request, for which it has to connect.
const (
	near      = 250 * time.Millisecond
	connected = time.Second
)

func apart(a, b time.Time) time.Duration { return max(a.Sub(b), b.Sub(a)) }

// TestWaterfall: what micad tells of a start is what the network has seen of it.
func TestWaterfall(t *testing.T) {
	ctx := fixture.Context(t)
	r, ref, _ := fixture.ServedDebian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	r.SetProfile(shaper.Cloud)
	defer r.SetProfile(shaper.Profile{})
	r.ResetTraffic()
	before := time.Now()
	fixture.Pull(t, n, "mica", ref)
	pulled := time.Now()
	fixture.Run(t, n, "mica", ref, "shown")
	ended := time.Now()
	micad := admin.NewClient(n.MicadAddress())
	var s admin.Start
	fixture.Eventually(t, 30*time.Second, func() string {
		var starts []admin.Start
		if err := micad.Get(ctx, admin.PathStarts, &starts); err != nil || len(starts) != 1 {
			return fmt.Sprintf("%d starts, want one: %v", len(starts), err)
		}
		s = starts[0]
		for _, l := range s.Lines {
			if !l.Over {
				return fmt.Sprintf("%s %s is under way", l.What, l.Range)
			}
		}
		return ""
	})
	if s.Ref != ref || !strings.HasSuffix(s.Container, "/shown") || s.Left != 0 ||
		s.Began.Before(before) || s.Pulled.After(pulled) || s.Created.Before(pulled) ||
		s.Created.After(ended) {
		t.Errorf("start %s of %s: began %v, pulled %v, created %v; left out %d", s.Container, s.Ref,
			s.Began, s.Pulled, s.Created, s.Left)
	}
	reads := 0
	var asked []admin.Line
	for _, l := range s.Lines {
		if l.Kind != admin.KindRead {
			asked = append(asked, l)
		} else if reads++; !l.Over || l.Sent.Before(pulled) || l.Last.After(ended) {
			t.Errorf("read %+v", l)
		}
	}
	if reads == 0 {
		t.Error("no read has waited")
	}
	compare(t, asked, r.Timeline())
	t.Run("ui", func(t *testing.T) { ui(t, n, ref) })
}

// compare finds each request of the network's log among micad's. Three are containerd's: the tag,
// the manifest and the config.
func compare(t *testing.T, lines []admin.Line, logged []registry.Timed) {
	t.Helper()
	t.Logf("%d requests of micad, %d in the log", len(lines), len(logged))
	others := 0
	for _, q := range logged {
		at := -1
		for i, l := range lines {
			if strings.HasSuffix(q.Path, "/"+l.What) && l.Status == q.Status &&
				strings.TrimPrefix(q.Range, "bytes=") == l.Range && apart(l.Sent, q.Sent) < connected {
				at = i
				break
			}
		}
		if at < 0 {
			t.Logf("not micad's: %s %s %s", q.Method, q.Path, q.Range)
			others++
			continue
		}
		l := lines[at]
		lines = append(lines[:at:at], lines[at+1:]...)
		if !l.Over || l.Bytes != q.Bytes && q.Status < 300 || // an error's text is not counted
			apart(l.First, q.First) > near || apart(l.Last, q.Last) > near {
			t.Errorf("%s %s: shown as answered after %v, ended after %v, %d bytes; was %v, %v, %d",
				q.Path, q.Range, l.First.Sub(l.Sent), l.Last.Sub(l.Sent), l.Bytes,
				q.First.Sub(q.Sent), q.Last.Sub(q.Sent), q.Bytes)
		}
	}
	if others > 3 {
		t.Errorf("%d requests are not shown", others-3)
	}
	for _, l := range lines {
		t.Errorf("nobody has seen %s %s, sent at %v", l.What, l.Range, l.Sent)
	}
}

// ui opens the page as an operator does.
func ui(t *testing.T, n *node.Node, ref string) {
	path, err := node.Binary("mica")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(fixture.Context(t), path, "ui", "--address", n.MicadAddress())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	at, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	at = strings.TrimSpace(at)
	ask := func(method, url, host string) (status int, text string) {
		req, err := http.NewRequestWithContext(fixture.Context(t), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if status, text := ask(http.MethodGet, at, ""); status != http.StatusOK ||
		!strings.Contains(text, ref) || !strings.Contains(text, "container shown") {
		t.Errorf("%s: %d %s", at, status, text)
	}
	root := at[:strings.Index(at[len("http://"):], "/")+len("http://")+1]
	for _, c := range []struct {
		method, url, host string
		want              int
	}{
		{http.MethodGet, root, "", http.StatusNotFound},
		{http.MethodGet, root + "v1/info", "", http.StatusNotFound},
		{http.MethodGet, at + "v1/info", "", http.StatusNotFound},
		{http.MethodPost, at, "", http.StatusMethodNotAllowed},
		{http.MethodGet, at, "evil.test", http.StatusMisdirectedRequest},
	} {
		if got, _ := ask(c.method, c.url, c.host); got != c.want {
			t.Errorf("%s %s of %q: %d, want %d", c.method, c.url, c.host, got, c.want)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("mica ui ended with %v", err)
	}
}
