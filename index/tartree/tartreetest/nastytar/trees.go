package nastytar

import (
	"fmt"
	"strings"
)

func links() []Tar {
	return []Tar{
		good("hard-links", File("a", "x", Mtime(5, 5)), Link("b", "a"),
			Link("c", "./a", Mode(0o600), Owner(9, 9)), Link("sub/d", "/b"), Link("e", "sub/d")),
		good("hard-link-and-dots", Dir("d"), File("d/f", "x"), Link("up", "d/../d/f"),
			Link("above", "../../d/f"), Link("twice", "d//./f")),
		good("hard-link-to-symlink", Symlink("s", "nowhere"),
			Link("h", "s", Owner(3, 4), Mtime(8, 8))),
		good("hard-link-to-device", Device("n", '3', 1, 3), Link("h", "n", Mode(0o666)),
			Device("p", '6', 0, 0), Link("q", "p")),
		good("hard-link-to-replaced", File("a", "old"), Link("b", "a"), File("a", "new"),
			Link("c", "a")),
		good("hard-link-over-file", File("a", "a"), File("b", "b"), Link("b", "a")),
		good("hard-link-over-directory", File("a", "a"), Dir("d"), File("d/f", "x"),
			Link("d", "a")),
		good("hard-link-through-symlink", Dir("real"), File("real/f", "x"), Symlink("s", "real"),
			Link("h", "s/f"), Link("s/g", "h")),
		good("hard-link-to-whiteout", File(".wh.gone", ""), Link("h", "gone", Mode(0o600))),
		good("hard-link-to-removed", File("d/f", "x"), Link("kept", "d/f"), File("d", "file now")),
		refused("hard-link-to-nothing", Link("h", "missing")),
		refused("hard-link-to-later", Link("h", "later"), File("later", "x")),
		refused("hard-link-to-itself", File("a", "x"), Link("a", "a")),
		refused("hard-link-to-directory", Dir("d"), Link("h", "d")),
		refused("hard-link-to-root", Link("h", "..")),
		good("hard-link-with-slash", File("f", "x"), File("d/e", "y"), Symlink("s", "f"),
			Link("h", "f/"), Link("i", "f/."), Link("j", "s/"), Link("k", "f/../f")),
		refused("hard-link-to-dots", File("d/f", "x"), Link("h", "d/f/..")),
		refused("hard-link-below-file", File("f", "x"), Link("h", "f/x")),
		refused("hard-link-without-target", Raw{Name: "h", Type: '1', Magic: magicUSTAR}.Entry),
		good("symlinks", Symlink("relative", "a/b"), Symlink("absolute", "/etc/passwd"),
			Symlink("up", "../../.."), Symlink("loop", "loop"),
			Symlink("trailing", "dir/"), Symlink("space", " "), Symlink("long",
				strings.Repeat("t/", 2047))),
		refused("symlink-without-target", Raw{Name: "s", Type: '2', Magic: magicUSTAR}.Entry),
		refused("symlink-too-long", Symlink("s", strings.Repeat("t", 4096))),
	}
}

func paths() []Tar {
	deep := strings.Repeat("d/", 1900)
	chain := []Entry{Dir("end")}
	for i := range 200 {
		next := "end"
		if i > 0 {
			next = fmt.Sprint("s", i-1)
		}
		chain = append(chain, Symlink(fmt.Sprint("s", i), next))
	}
	longer := append(chain[:len(chain):len(chain)], Symlink("s200", "s199"))
	for i := 201; i < 300; i++ {
		longer = append(longer, Symlink(fmt.Sprint("s", i), fmt.Sprint("s", i-1)))
	}
	return []Tar{
		good("root-entries", Dir("./", Mode(0o700), Owner(5, 5), Xattr("user.root", "x")),
			Dir("/", Mode(0o711)), Dir("../"), File("./f", "x"), Dir("a/..")),
		good("absolute", Dir("/abs"), File("/abs/f", "x"), File("//double//slash", "y")),
		good("dots", File("../up", "x"), File("../../a/../b/f", "y"), File("./c/./d", "z"),
			File("e/../../../g", "w")),
		good("missing-parents", File("a/b/c/d", "x", Mtime(3, 0)), File("a/b/e", "y", Mtime(4, 0))),
		good("parents-come-later", File("a/b/c", "x"),
			Dir("a/b", Mode(0o711), Owner(1, 1), Mtime(5, 5), Xattr("user.late", "1")), Dir("a",
				Mode(0o500), Mtime(6, 6))),
		good("directory-time-is-kept", Dir("d", Mtime(5, 5)), File("d/a", "x"),
			Dir("d/s", Mtime(6, 0)), File("d/s/b", "x"), Link("d/s/c", "d/a")),
		good("deep", File(deep+"f", "x"), Dir(deep+"g")),
		good("through-symlink", Dir("usr"), Dir("usr/lib"), Symlink("lib", "usr/lib"),
			File("lib/f", "x"), Dir("lib/d", Mtime(5, 5)), File("lib/new/g",
				"y"), File("lib/.wh.gone", "")),
		good("through-absolute-symlink", Symlink("var/run", "/run"), File("var/run/pid", "1")),
		good("through-symlink-out", Symlink("out", "../../../../tmp-of-nasty"), File("out/f", "x"),
			Symlink("etc", "/../../etc-of-nasty"), File("etc/g", "x")),
		good("through-symlink-to-nothing", Symlink("s", "not/there"), File("s/f", "x")),
		good("through-chain", Symlink("a", "b"), Symlink("b", "c"), Symlink("c", "d/e"),
			File("a/x/f", "x"), File("c/g", "y")),
		good("through-nested", Dir("d/e"), Symlink("d/up", "../t"), Symlink("d/e/up2", "../../t/u"),
			File("d/up/f", "x"), File("d/e/up2/g", "y"), Symlink("s", "d/e"), File("s/up2/h", "z")),
		good("through-textual-dots", Dir("deep/dir"), Dir("t"), Symlink("s", "deep/dir"),
			Symlink("a", "s/../t"), File("a/f", "x"), Link("h", "a/f"), Link("i", "s/../t/f")),
		refused("through-textual-dots-again", Dir("deep/dir"), Dir("t"), Symlink("s", "deep/dir"),
			Symlink("a", "s/../t"), File("a/f", "x"), Link("h", "s/../../a/f")),
		good("through-chain-and-relative", Dir("deep/dir"), Symlink("d1", "deep/dir"),
			Symlink("s", "d1"), Symlink("deep/dir/l", "../x"), File("s/l/f", "x")),
		good("through-what-becomes-a-symlink", Symlink("a", "t/s/../u"), File("a/f", "x"),
			Symlink("t/s", "../deep/x"), File("a/g", "y"),
			Symlink("t/s2", "s"), Symlink("b", "t/u/../../v"), Dir("b/d",
				Mtime(5, 5)), Symlink("b/late", "x"), File("b/f", "x")),
		good("through-what-the-same-directory-gets", Symlink("a", "t/s/../../t"), Dir("deep/x/y"),
			Dir("deep/t"), File("a/f", "x"),
			Symlink("a/s", "../deep/x/y"), File("a/g", "y")),
		refused("directory-leads-elsewhere-in-the-end", Symlink("a", "t/s/../../t"),
			Dir("deep/x/y"), Dir("deep/t"), File("a/f", "x"),
			Symlink("a/s", "../deep/x/y"), File("a/g", "y"), Dir("a/d", Mtime(7, 7))),
		good("through-absolute-in-a-target", Dir("z"), Symlink("var/run", "/run-of-nasty"),
			Symlink("run-of-nasty/y", "../z"), Symlink("a", "var/run"), File("a/y/f", "x")),
		good("through-200-links", append(chain, File("s199/f", "x"))...),
		refused("through-300-links", append(longer, File("s299/f", "x"))...),
		refused("through-loop", Symlink("a", "b"), Symlink("b", "a"), File("a/f", "x")),
		refused("through-growing-loop", Symlink("a", "a/x"), File("a/f", "x")),
		refused("through-file", File("f", "x"), File("f/g", "y")),
		refused("through-file-deeper", File("f", "x"), File("f/g/h", "y")),
		refused("through-symlink-to-file", File("f", "x"), Symlink("s", "f"), File("s/g", "y")),
		refused("through-whiteout", File(".wh.a", ""), File("a/f", "x")),
		good("directory-over-symlink", Dir("real"), Symlink("s", "real"), Dir("s"),
			File("s/f", "x")),
		good("symlink-over-directory", Dir("real"), Dir("s"), File("s/old", "x"), Dir("other"),
			Symlink("s", "real"), File("s/f", "x")),
	}
}

func replaced() []Tar {
	return []Tar{
		good("file-twice", File("f", "first", Mode(0o600), Xattr("user.first", "1")),
			File("f", "second, longer", Owner(2, 2))),
		good("directory-twice", Dir("d", Mode(0o700), Mtime(1, 1)), File("d/f", "x"),
			Dir("d", Mode(0o711), Mtime(2, 2))),
		good("every-type-over-file", File("a", "x"), Symlink("a", "b"), File("b", "x"),
			Device("b", '6', 0, 0), File("c", "x"), Device("c", '3', 1, 3),
			File("d", "x"), Dir("d"), File("d/f", "y"), Device("e", '4', 8, 1), File("e",
				"x"), Symlink("g", "e"), File("g", "z")),
		good("implicit-directory-becomes-file", File("d/f", "x"), File("d", "y")),
		good("file-becomes-directory", File("d", "y"), Dir("d", Mode(0o750)), File("d/f", "x")),
		// At the end containerd sets the time of what was once a directory.
		good("directory-becomes-file", Dir("d", Mtime(5, 5)), File("d/f", "x"),
			File("d", "y", Mtime(9, 9))),
		good("directory-becomes-symlink", Dir("t", Mtime(3, 3)), Dir("d", Mtime(5, 5)),
			Symlink("d", "t", Mtime(9, 9))),
		good("directory-becomes-symlink-with-sub", Dir("t/s"), Dir("d/s", Mtime(5, 5)),
			Symlink("d", "t", Mtime(9, 9))),
		refused("directory-with-sub-becomes-file", Dir("d"), Dir("d/s"), File("d", "y")),
		refused("directory-becomes-symlink-to-nothing", Dir("d"), Symlink("d", "nowhere")),
		good("directory-comes-back", Dir("d", Mode(0o700)), File("d/old", "x"), File("d", "y"),
			Dir("d", Mode(0o711), Mtime(8, 8)), File("d/new", "z")),
	}
}

func whiteouts() []Tar {
	return []Tar{
		good("whiteouts", Dir("d"), File("d/.wh.gone", "", Owner(7, 8), Mode(0o644)),
			File(".wh.top", "ignored content"), File("implicit/.wh.x", ""),
			Dir("dir/.wh.dir"), Symlink(".wh.link", "x"), Raw{Name: ".wh.odd", Type: 'Z',
				Magic: magicUSTAR, Data: "x"}.Entry, File(".wh..hidden", "")),
		good("opaque", Dir("a"), File("a/.wh..wh..opq", ""), File("a/f", "x"),
			File("b/.wh..wh..opq", ""), Dir("b", Mode(0o700), Mtime(5, 5)), File("c/d/.wh..wh..opq",
				""),
			File("c/d/f", "x")),
		good("opaque-twice", Dir("a"), File("a/.wh..wh..opq", ""), File("a/.wh..wh..opq", ""),
			Dir("a", Xattr("user.a", "1"))),
		good("opaque-root", File(".wh..wh..opq", ""), File("f", "x")),
		good("opaque-through-symlink", Dir("a"), Symlink("s", "a"), File("s/.wh..wh..opq", "")),
		good("opaque-directory-replaced", Dir("a"), File("a/.wh..wh..opq", ""), File("a", "x"),
			Dir("a")),
		good("whiteout-specials", Dir("d"), File("d/.wh..wh.plnk", "x"), File("d/.wh..wh.aufs", ""),
			File("d/.wh..wh..opqx", ""), File("d/.wh..wh.", "")),
		good("whiteout-then-file", File(".wh.a", ""), File("a", "x"), File(".wh.d", ""), Dir("d"),
			File("d/f", "x"), File(".wh.l", ""), Symlink("l", "a")),
		good("whiteout-longest", File(".wh."+strings.Repeat("n", 255), "")),
		refused("whiteout-too-long", File(".wh."+strings.Repeat("n", 256), "")),
		refused("whiteout-after-file", File("a", "x"), File(".wh.a", "")),
		refused("whiteout-after-directory", Dir("a"), File(".wh.a", "")),
		refused("whiteout-twice", File(".wh.a", ""), File(".wh.a", "")),
		refused("whiteout-without-name", File("d/.wh.", "")),
		refused("whiteout-of-dot", File("d/.wh..", "")),
		refused("whiteout-of-dots", File("d/.wh...", "")),
		refused("whiteout-of-dots-at-root", File(".wh...", "")),
	}
}

func sparse() []Tar {
	block := func(c string, n int) string { return strings.Repeat(c, n*blockSize) }
	kinds := map[string]func(string, int64, ...Piece) Entry{"0.0": Sparse00, "0.1": Sparse01,
		"1.0": Sparse10, "old": SparseOld}
	var many []Piece
	for i := range 300 {
		many = append(many, Piece{int64(i) * 8192, block(string(rune('a'+i%26)), 1)})
	}
	var tars []Tar
	for kind, f := range kinds {
		add := good
		if kind == "old" {
			add = extra
		}
		tars = append(tars,
			add("sparse-"+kind, File("before", "b"),
				f("aligned", 1<<20, Piece{4096, block("a", 8)}, Piece{1 << 19, block("b", 3)},
					Piece{1 << 20, ""}),
				f("end", 5000, Piece{4096, strings.Repeat("e", 904)}),
				f("start", 100000, Piece{0, block("s", 2)}, Piece{100000, ""}),
				f("many", 300*8192, many...),
				File("after", strings.Repeat("c", 777))),
			add("sparse-odd-"+kind,
				f("unaligned", 8192, Piece{10, "abc"}, Piece{100, strings.Repeat("d", 1000)},
					Piece{1100, strings.Repeat("e", 1000)}, Piece{4000, strings.Repeat("f", 3000)}),
				f("head", 8192, Piece{512 + 100, strings.Repeat("h", 412)},
					Piece{1024, block("i", 2)}, Piece{3000, block("j", 1)}),
				f("tail", 9000, Piece{1024, block("t", 2) + "tail"}, Piece{2500, "more"},
					Piece{8999, "z"}),
				f("byte", 1, Piece{0, "b"}),
				f("zero-pieces", 2000, Piece{0, ""}, Piece{10, "x"}, Piece{11, ""},
					Piece{600, "y"}),
				File("after", "c")),
			add("sparse-holes-"+kind, f("one-hole", 1<<20), f("empty", 0),
				f("dense", 1024, Piece{0, block("d", 2)}), File("after", "c")),
			refused("sparse-overlap-"+kind,
				f("f", 8192, Piece{512, block("x", 2)}, Piece{1000, block("y", 1)})),
			refused("sparse-beyond-"+kind, f("f", 1000, Piece{512, block("x", 2)})),
		)
	}
	return append(tars,
		good("sparse-unknown-version",
			PAX("GNU.sparse.major", "2", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "99999"),
			Raw{Name: "f", Type: '0', Magic: magicUSTAR, Data: "as it is"}.Entry),
		refused("sparse-less-data",
			PAX("GNU.sparse.size", "9000", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "0,2000"),
			Raw{Name: "f", Type: '0', Magic: magicUSTAR, Data: "short"}.Entry, File("g",
				block("g", 20))),
		refused("sparse-more-data",
			PAX("GNU.sparse.size", "9000", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "0,2"),
			Raw{Name: "f", Type: '0', Magic: magicUSTAR, Data: "long"}.Entry),
		refused("sparse-directory",
			PAX("GNU.sparse.size", "9000", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "0,2"),
			Raw{Name: "f/", Type: '5', Magic: magicUSTAR}.Entry),
		good("sparse-whiteout", Sparse10(".wh.f", 1<<20, Piece{4096, block("a", 8)}),
			File("after", "c")),
	)
}

func ends() []Tar {
	whole := Of(File("a", strings.Repeat("a", 1000)), File("b", strings.Repeat("b", 1000)))
	cut := func(name string, n int, refused bool) Tar {
		return Tar{Name: name, Data: whole[:n], Refused: refused}
	}
	return []Tar{
		{Name: "no-end-marker", Data: Unended(File("a", "x"))},
		{Name: "one-zero-block", Data: append(Unended(File("a", "x")), make([]byte, blockSize)...)},
		{Name: "nothing", Data: nil},
		{Name: "garbage-behind-the-end", Data: append(Of(File("a", "x")), "garbage"...)},
		{Name: "two-tars", Data: append(Of(File("a", "x")), Of(File("b", "x"))...)},
		{Name: "one-zero-block-inside",
			Data: append(append(Unended(File("a", "x")), make([]byte, blockSize)...),
				Of(File("b", "x"))...), Refused: true},
		cut("cut-in-header", 100, true),
		cut("cut-behind-header", 512, true),
		cut("cut-in-data", 700, true),
		cut("cut-in-padding", 1520, false),
		cut("cut-between-entries", 1536, false),
		cut("cut-in-second-header", 1600, true),
		{Name: "not-a-tar", Data: []byte(strings.Repeat("not a tar ", 200)), Refused: true},
		{Name: "wrong-checksum", Data: append([]byte("X"), whole[1:]...), Refused: true},
	}
}
