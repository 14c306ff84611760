package sametree

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/mica-snapshotter/mica/integration/images"
)

// generator makes up layers in which names meet each other: few of them, in few directories. What
// it makes is unpacked by containerd for the most part.
type generator struct {
	*rand.Rand
	format tar.Format
	used   map[string]byte // types of the names of this layer
	out    []images.Entry
}

// image returns the tars of an image of 2 to 6 layers, some of them twice.
func randomImage(seed uint64) ([][]byte, error) {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 18))}
	var tars [][]byte
	for n := 2 + g.IntN(5); len(tars) < n; {
		switch {
		case len(tars) > 0 && g.chance(6):
			tars = append(tars, tars[g.IntN(len(tars))])
		case g.chance(12):
			tars = append(tars, make([]byte, 1024)) // BuildKit's empty layer
		default:
			t, err := g.layer(len(tars) == 0)
			if err != nil {
				return nil, err
			}
			tars = append(tars, t)
		}
	}
	return tars, nil
}

// chance is true once in n times.
func (g *generator) chance(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

// layer makes a layer of 1 to 14 entries. The lowest one has more directories, which others imply.
func (g *generator) layer(lowest bool) ([]byte, error) {
	g.format = pick(g, tar.FormatPAX, tar.FormatPAX, tar.FormatGNU, tar.FormatUSTAR)
	g.used, g.out = map[string]byte{}, nil
	n := 1 + g.IntN(14)
	if lowest {
		n += 6
	}
	for range n {
		g.entry(lowest)
	}
	return images.Tar(g.out...)
}

// path returns a path of one to four names. Those of directories and of others meet at times
// only, because containerd refuses most layers that go through what was a file.
func (g *generator) path(isDir bool) string {
	names := []string{}
	if dir := g.existing("d"); dir != "" && g.chance(2) {
		names = append(names, dir)
	}
	for range g.IntN(3) {
		names = append(names, pick(g, "a", "b", "opt", "tmp"))
	}
	switch {
	case g.chance(9):
		names = append(names, pick(g, "a", "b", "f"))
	case isDir:
		names = append(names, pick(g, "a", "b", "opt", "tmp"))
	default:
		names = append(names, pick(g, "f", "g", "h"))
	}
	return path.Join(names...)
}

// blocked says whether something that is no directory lies on the way to a path.
func (g *generator) blocked(p string) bool {
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if t := g.used[dir]; t != 0 && t != 'd' {
			return true
		}
	}
	return false
}

// existing returns a path that the layer has, of one of these types; "" for none.
func (g *generator) existing(types string) string {
	var all []string
	for p, t := range g.used {
		if strings.IndexByte(types, t) >= 0 {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return pick(g, all...)
}

// exists says whether the layer has a path, or implies it.
func (g *generator) exists(p string) bool {
	for q := range g.used {
		if q == p || strings.HasPrefix(q, p+"/") {
			return true
		}
	}
	return false
}

func (g *generator) entry(lowest bool) {
	n := g.IntN(20)
	isDir := n < 6 || lowest && n < 9
	p := g.path(isDir || n == 19 || n == 18)
	if link := g.existing("l"); link != "" && g.chance(20) {
		p = path.Join(link, "through")
	} else if g.blocked(p) {
		return
	}
	if old := g.used[p]; old == 'd' && !isDir && !g.chance(8) || old == 'w' && g.chance(2) {
		return
	}
	if isDir && g.used[p] == 0 && g.exists(p) && !g.chance(30) {
		return
	}
	h := tar.Header{Name: p, Mode: pick[int64](g, 0o644, 0o755, 0o600, 0o4755, 0o2755, 0o444, 0),
		Typeflag: tar.TypeReg}
	content := []byte(nil)
	kind := 'f'
	switch {
	case isDir:
		kind = 'd'
		h.Typeflag, h.Mode = tar.TypeDir, pick[int64](g, 0o755, 0o711, 0o1777, 0o700, 0o2775, 0o3777)
		h.Name += "/"
	case n < 13:
		content = bytes.Repeat([]byte(fmt.Sprintf("%s %d\n", p, g.IntN(100))), g.IntN(200))
	case n == 13:
		kind = 'l'
		h.Typeflag, h.Linkname = tar.TypeSymlink, pick(g, "a", "opt", "../a", "/tmp", "/opt/b", "none",
			"b/../c", "/")
	case n == 14:
		if to := g.existing("fl"); to != "" {
			h.Typeflag, h.Linkname = tar.TypeLink, to
		}
	case n == 15:
		kind = 'x'
		h.Typeflag = pick[byte](g, tar.TypeFifo, tar.TypeChar, tar.TypeBlock)
		if h.Typeflag != tar.TypeFifo {
			h.Devmajor, h.Devminor = int64(1+g.IntN(200)), int64(g.IntN(200))
		}
	case n < 19:
		kind = 'w'
		h.Name = path.Join(path.Dir(p), ".wh."+path.Base(p))
		if g.exists(p) && (!lowest || !g.chance(4)) {
			return // containerd fails, or is left alone with the layer
		}
	default:
		kind = 'o'
		h.Name = path.Join(p, ".wh..wh..opq")
		if g.used[p] != 0 && g.used[p] != 'd' || lowest && g.exists(p) && !g.chance(4) {
			return
		}
	}
	if kind != 'o' {
		g.used[p] = byte(kind)
	}
	g.attributes(&h)
	g.out = append(g.out, images.Entry{Header: h, Content: content})
}

func (g *generator) attributes(h *tar.Header) {
	h.Uid, h.Gid = pick(g, 0, 0, 1000, 65534), pick(g, 0, 0, 100, 70000)
	h.ModTime = time.Unix(1_600_000_000+int64(g.IntN(1000)), 0)
	h.Format = g.format
	if g.format != tar.FormatPAX {
		return
	}
	h.ModTime = h.ModTime.Add(time.Duration(g.IntN(1e9)))
	if (h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir) && g.chance(4) {
		h.PAXRecords = map[string]string{
			"SCHILY.xattr." + pick(g, "user.one", "user.two", "security.x"): fmt.Sprint(g.IntN(10)),
		}
	}
}

// describe writes a line for each entry of a tar.
func describe(w io.Writer, r io.Reader) {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err != nil {
			return
		}
		fmt.Fprintf(w, "  %c %04o %d:%d %s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Name)
		if h.Linkname != "" {
			fmt.Fprintf(w, " -> %s", h.Linkname)
		}
		fmt.Fprintln(w)
	}
}
