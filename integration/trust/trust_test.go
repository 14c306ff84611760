// Package trust tries what one repository can do to the containers of another's images, on a real
// node: its own images' containers may be shown what it likes, the other's only what its diffIDs
// name.
package trust

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

const mica = node.Snapshotter

// pair is a victim's image and what an attacker makes of it. Each has layers of its own.
type pair struct {
	victim layer
	evil   layer // claims the victim's diffID
	top    layer // above the victim's, which implies /etc
	seed   string
}

func newPair(t *testing.T, probe []byte, seed string) pair {
	t.Helper()
	p := pair{
		victim: layerOf(t, who(t, probe, "victim\n", seed, 0o711)),
		evil:   layerOf(t, who(t, probe, "EVIL!!\n", "evil "+seed, 0o777)),
		seed:   seed,
	}
	p.evil.claimed = p.victim.claimed
	tar, err := images.Tar(images.File("etc/top", 0o644, []byte("top "+seed+"\n")))
	if err != nil {
		t.Fatal(err)
	}
	p.top = layerOf(t, tar)
	return p
}

// attack makes the attacker's image and its index.
type attack struct {
	name string
	make func(t *testing.T, p pair) (v1.Image, []drafted)
	// shows: the attacker's own container sees the forged file while its layer is lazy. Where it
	// does not, the forger has only made reads fail.
	shows bool
	// harmless: not even the attacker's own container sees anything but the victim's file.
	harmless bool
}

var attacks = []attack{
	{"diffID", func(t *testing.T, p pair) (v1.Image, []drafted) {
		// Another blob, whose index says that it is the victim's tar.
		d, windows := scan(t, p.evil)
		victim, _ := scan(t, p.victim)
		d.DiffID = victim.DiffID
		return imageOf(t, p.evil), []drafted{{draft: d, windows: windows}}
	}, true, false},
	{"tree", func(t *testing.T, p pair) (v1.Image, []drafted) {
		// The victim's own blob, with a tree that shows other files and modes.
		d, windows := scan(t, p.victim)
		etc := d.Root.Children["etc"]
		etc.Children["who"].Extents = etc.Children["other"].Extents
		etc.Mode = etc.Mode&^0o777 | 0o777
		return imageOf(t, p.victim), []drafted{{draft: d, windows: windows}}
	}, true, false},
	{"index of another layer", func(t *testing.T, p pair) (v1.Image, []drafted) {
		// The victim's blob, with the spans and the tree of the attacker's.
		d, windows := scan(t, p.evil)
		victim, _ := scan(t, p.victim)
		d.Layer, d.LayerSize, d.DiffID = victim.Layer, victim.LayerSize, victim.DiffID
		return imageOf(t, p.victim), []drafted{{draft: d, windows: windows}}
	}, false, false},
	{"window", func(t *testing.T, p pair) (v1.Image, []drafted) {
		// The victim's blob, of which a span begins with the window of another one.
		d, windows := scan(t, p.victim)
		for i := range d.Spans {
			s := &d.Spans[i]
			for j := range d.Spans {
				w := d.Spans[j].Window
				if s.Window.Size == 0 || w.Size == 0 || i == j {
					continue
				}
				forged, content := *s, make([]byte, s.Size)
				forged.Window = w
				decode := func() error {
					return forged.Decode(content, p.victim.blob[s.Blob:][:s.BlobSize],
						windows[w.Off:][:w.Size])
				}
				_ = decode()
				forged.Digest = sha256.Sum256(content)
				if forged.Digest != s.Digest && decode() == nil {
					*s = forged
					return imageOf(t, p.victim), []drafted{{draft: d, windows: windows}}
				}
			}
		}
		t.Fatal("no window could be forged")
		return nil, nil
	}, false, false},
	{"profile and copy", func(t *testing.T, p pair) (v1.Image, []drafted) {
		// The victim's blob and index, with a copy of what a start reads that has other bytes.
		d, windows := scan(t, p.victim)
		r, err := p.victim.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		tar, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		forged := bytes.ReplaceAll(tar, []byte("victim\n"), []byte("EVIL!!\n"))
		return imageOf(t, p.victim), []drafted{{draft: d, windows: windows, copied: forged}}
	}, false, true},
}

// moment is what happens between the attacker's first container and the victim's pull.
type moment struct {
	name    string
	options node.Options
	do      func(t *testing.T, n *node.Node)
}

// impatient: reads of spans that are not what a forged index says fail soon.
const impatient = `read_deadline = "3s"`

var moments = []moment{
	{"lazy", node.Options{DemandOnly: true, Micad: impatient}, func(*testing.T, *node.Node) {}},
	{"becoming whole", node.Options{Micad: impatient}, func(*testing.T, *node.Node) {}},
	{"whole", node.Options{Micad: impatient},
		func(*testing.T, *node.Node) { time.Sleep(2 * time.Second) }},
	{"restart", node.Options{DemandOnly: true, Micad: impatient}, func(t *testing.T, n *node.Node) {
		t.Helper()
		if err := n.RestartMicad(t.Context()); err != nil {
			t.Fatal(err)
		}
	}},
}

// TestNeighbours: for every attack and moment the victim's containers show the victim's files, in
// the attacker's namespace and in another one, with an index of its own or without. Where the
// attack is on the index alone, both repositories have the same manifest.
func TestNeighbours(t *testing.T) {
	probe, err := os.ReadFile(fixture.Probe(t))
	if err != nil {
		t.Fatal(err)
	}
	r := fixture.Registry(t)
	for i, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel() // reads of what is forged wait until their deadline
			n := fixture.Node(t, m.options)
			var cases []*neighbours
			for j, a := range attacks {
				c := &neighbours{n: n, attack: a, pair: newPair(t, probe, m.name+" "+a.name)}
				c.prepare(t, r, (i+j)%2 == 0)
				cases = append(cases, c)
			}
			m.do(t, n)
			for _, c := range cases {
				c.check(t)
			}
		})
	}
}

// neighbours is one attack on a node.
type neighbours struct {
	n      *node.Node
	attack attack
	pair   pair
	name   string // in repositories' and containers' names

	evil, victim, above string // references
}

// prepare pushes the images, pulls the attacker's, and runs it.
func (c *neighbours) prepare(t *testing.T, r *registry.Registry, indexed bool) {
	t.Helper()
	c.name = fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, c.pair.victim.claimed)))[:12]
	img, drafts := c.attack.make(t, c.pair)
	c.evil = push(t, r, "evil/"+c.name, img, drafts...)
	victim, above := imageOf(t, c.pair.victim), imageOf(t, c.pair.victim, c.pair.top)
	var own, both []drafted
	if indexed {
		v, vw := scan(t, c.pair.victim)
		top, tw := scan(t, c.pair.top)
		own, both = []drafted{{draft: v, windows: vw}}, []drafted{{draft: v, windows: vw},
			{draft: top, windows: tw}}
	}
	c.victim = push(t, r, "victim/"+c.name, victim, own...)
	c.above = push(t, r, "above/"+c.name, above, both...)
	fixture.Pull(t, c.n, mica, c.evil)
	out, err := c.n.Run(t.Context(), mica, c.evil, "evil-"+c.name, "/probe", "show", "/etc/who")
	if c.attack.shows && (err != nil || !strings.Contains(out, show("EVIL!!\n"))) {
		t.Fatalf("%s: the attacker's container shows\n%s%v: nothing is tested", c.attack.name, out,
			err)
	}
	if c.attack.harmless && (err != nil || out != show("victim\n")) {
		t.Errorf("%s: the attacker's container shows\n%s%v", c.attack.name, out, err)
	}
}

// show is what the probe prints of a regular file with this content.
func show(content string) string {
	return fmt.Sprintf("-rw-r--r-- %x\n", sha256.Sum256([]byte(content)))
}

// check pulls the victim's images, runs them, and then the attacker's once more.
func (c *neighbours) check(t *testing.T) {
	t.Helper()
	want := "drwx--x--x\n" + show("victim\n") + show(string(text(c.pair.seed, 1<<20)))
	for _, of := range [][2]string{{"other", c.above}, {c.n.Namespace(), c.victim},
		{c.n.Namespace(), c.above}} {
		in, ref := of[0], of[1]
		fixture.Ctr(t, c.n, "--namespace", in, "images", "pull", "--plain-http", "--snapshotter",
			mica, ref)
		out, err := c.run(t, in, ref)
		if err != nil || out != want {
			t.Errorf("%s: %s in %s shows\n%s%v\nwant\n%s", c.attack.name, ref, in, out, err, want)
		}
	}
	// The chain is the victim's now, or nobody's.
	if out, err := c.run(t, c.n.Namespace(), c.evil); err == nil && out != want {
		t.Errorf("%s: the attacker's container still shows\n%s", c.attack.name, out)
	}
}

func (c *neighbours) run(t *testing.T, namespace, ref string) (string, error) {
	t.Helper()
	id := fmt.Sprintf("c-%x", sha256.Sum256([]byte(namespace+ref)))[:14]
	return c.n.Run(namespaces.WithNamespace(t.Context(), namespace), mica, ref, id,
		"/probe", "show", "/etc", "/etc/who", "/text")
}

// TestSharedBase: an image that has the same layers and the same index in another repository is
// shared as it is, with nothing fetched for a proof; and so is one that an operator has given
// another name.
func TestSharedBase(t *testing.T) {
	probe, err := os.ReadFile(fixture.Probe(t))
	if err != nil {
		t.Fatal(err)
	}
	r := fixture.Registry(t)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	p := newPair(t, probe, "shared")
	base, bw := scan(t, p.victim)
	top, tw := scan(t, p.top)
	first := push(t, r, "shared/first", imageOf(t, p.victim), drafted{draft: base, windows: bw})
	second := push(t, r, "shared/second", imageOf(t, p.victim, p.top),
		drafted{draft: base, windows: bw}, drafted{draft: top, windows: tw})
	same := push(t, r, "shared/same", imageOf(t, p.victim), drafted{draft: base, windows: bw})
	fixture.Pull(t, n, mica, first)
	fixture.Ctr(t, n, "images", "tag", first, "docker.io/library/mine:1")
	for i, ref := range []string{first, "docker.io/library/mine:1", second, same} {
		if strings.HasPrefix(ref, r.Host()) {
			fixture.Pull(t, n, mica, ref)
		}
		out := fixture.Run(t, n, mica, ref, fmt.Sprintf("c%d", i), "/probe", "show", "/etc/who")
		if out != show("victim\n") {
			t.Errorf("%s shows %s", ref, out)
		}
	}
	log, err := os.ReadFile(n.Log("micad"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "proved before it is shown") {
		t.Errorf("a layer was proved:\n%s", log)
	}
}

// TestHonestElsewhere: the blob of the attacker is a layer of another repository, which claims
// nothing false. That it is proved to be that does not make it what the attacker claims.
func TestHonestElsewhere(t *testing.T) {
	probe, err := os.ReadFile(fixture.Probe(t))
	if err != nil {
		t.Fatal(err)
	}
	r := fixture.Registry(t)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	p := newPair(t, probe, "elsewhere")
	img, drafts := attacks[0].make(t, p)
	third := layerOf(t, who(t, probe, "EVIL!!\n", "evil elsewhere", 0o777))
	evil, honest := push(t, r, "elsewhere/evil", img, drafts...), push(t, r, "elsewhere/honest",
		imageOf(t, third))
	victim := push(t, r, "elsewhere/victim", imageOf(t, p.victim))
	for i, image := range []struct{ ref, shows string }{{evil, "EVIL!!\n"}, {honest, "EVIL!!\n"},
		{victim, "victim\n"}} {
		fixture.Pull(t, n, mica, image.ref)
		out := fixture.Run(t, n, mica, image.ref, fmt.Sprintf("c%d", i), "/probe", "show",
			"/etc/who")
		if out != show(image.shows) {
			t.Errorf("%s shows %s, want %s", image.ref, out, show(image.shows))
		}
	}
	if out, err := n.Run(t.Context(), mica, evil, "again", "/probe", "show",
		"/etc/who"); err == nil && out != show("victim\n") {
		t.Errorf("the attacker's container shows %s", out)
	}
}

// TestNobodyToAsk: where micad may not ask containerd, no layer is shown before it is proved.
func TestNobodyToAsk(t *testing.T) {
	probe, err := os.ReadFile(fixture.Probe(t))
	if err != nil {
		t.Fatal(err)
	}
	r := fixture.Registry(t)
	n := fixture.Node(t, node.Options{DemandOnly: true, Micad: `containerd_address = "none"`})
	p := newPair(t, probe, "alone")
	img, drafts := attacks[0].make(t, p)
	evil, victim := push(t, r, "alone/evil", img, drafts...), push(t, r, "alone/victim",
		imageOf(t, p.victim))
	fixture.Pull(t, n, mica, evil)
	if out, err := n.Run(t.Context(), mica, evil, "evil", "/probe", "show",
		"/etc/who"); err == nil {
		t.Errorf("a layer that is not what it claims shows %s", out)
	}
	// Its chain is nobody's until it is removed.
	fixture.Ctr(t, n, "images", "rm", "--sync", evil)
	fixture.Pull(t, n, mica, victim)
	if out := fixture.Run(t, n, mica, victim, "victim", "/probe", "show",
		"/etc/who"); out != show("victim\n") {
		t.Errorf("the victim's image shows %s", out)
	}
}
