package nastytar

import (
	"archive/tar"
	"math/rand/v2"
	"strings"
)

// Random returns a tar of up to 12 entries that meet often, since they are made from
// few names. Most are refused by containerd for one entry or another; the tars of a
// seed are always the same.
func Random(seed uint64) []byte {
	r := random{rand.New(rand.NewPCG(seed, 0))}
	entries := make([]Entry, 1+r.IntN(12))
	for i := range entries {
		entries[i] = r.entry()
	}
	return Of(entries...)
}

type random struct{ *rand.Rand }

func (r random) one(s ...string) string { return s[r.IntN(len(s))] }

func (r random) path() string {
	p := r.one("", "", "", "", "./", "/", "../")
	for r.IntN(5) < 2 {
		p += r.one("na", "na", "nb", "nc", "nd", ".", "..", "") + "/"
	}
	return p + r.one("na", "nb", "nc", "nd", "ne")
}

// target returns names that no host has at its root: containerd follows some links
// there.
func (r random) target() string {
	t := r.path()
	for t[0] != '/' && r.IntN(6) == 0 {
		t = "../" + t
	}
	return t + r.one("", "", "", "/", "/.", "/..")
}

func (r random) options() (o []Option) {
	if r.IntN(3) == 0 {
		o = append(o, Mode(r.Int64N(0o10000)))
	}
	if r.IntN(3) == 0 {
		o = append(o, Owner(r.IntN(5), r.IntN(5)))
	}
	if r.IntN(2) == 0 {
		o = append(o, Mtime(r.Int64N(1<<32), r.Int64N(2)))
	}
	if r.IntN(8) == 0 {
		o = append(o, Xattr(r.one("user.a", "user.b", "security.c"), r.one("1", "2", "")))
	}
	return o
}

func (r random) entry() Entry {
	name, o := r.path(), r.options()
	switch r.IntN(10) {
	case 0, 1:
		return File(name, strings.Repeat(r.one("x", "y"), r.IntN(1000)), o...)
	case 2, 3:
		return Dir(name+r.one("", "/"), o...)
	case 4, 5:
		return Symlink(name, r.target(), o...)
	case 6, 7:
		return Link(name, r.one("", "/", "./")+r.target(), o...)
	case 8:
		dir, base := "", name
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			dir, base = name[:i+1], name[i+1:]
		}
		return File(dir+r.one(".wh.", ".wh..wh..opq", ".wh."+base, ".wh."+base), "", o...)
	default:
		return r.special(name, o)
	}
}

func (r random) special(name string, o []Option) Entry {
	if r.IntN(3) == 0 {
		return Global(name)
	}
	return Device(name, r.one(string(rune(tar.TypeChar)), string(rune(tar.TypeBlock)),
		string(rune(tar.TypeFifo)))[0], r.Int64N(3), r.Int64N(300), o...)
}
