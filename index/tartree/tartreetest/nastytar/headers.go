package nastytar

import (
	"archive/tar"
	"encoding/binary"
	"strings"
)

func headers() []Tar {
	long := strings.Repeat("directory-of-31-characters-here/", 6) + strings.Repeat("f", 200)
	max := strings.Repeat("n", 255)
	latin1 := "gr\xfc\xdfe-\xff\xfe"
	ustar := strings.Repeat("p", 100) + "/" + strings.Repeat("n", 100)
	return []Tar{
		good("empty"),
		good("plain", Dir("etc/"), File("etc/passwd", "root:x:0:0\n"), File("etc/empty", ""),
			File("etc/block", strings.Repeat("b", 512)), File("etc/more",
				strings.Repeat("m", 5000))),
		good("pax-long-names", File(long, "x", Format(tar.FormatPAX)),
			Symlink("l", long, Format(tar.FormatPAX)),
			Link("h", long, Format(tar.FormatPAX))),
		good("gnu-long-names", File(long, "x", Format(tar.FormatGNU)),
			Symlink("l", long, Format(tar.FormatGNU)),
			Link("h", long, Format(tar.FormatGNU))),
		good("ustar-prefix", File(ustar, "x", Format(tar.FormatUSTAR))),
		good("longest-name", File(max, "x"), Dir(max[:254]+"/"), File(max[:254]+"/"+max, "y")),
		refused("name-too-long", File(max+"n", "x")),
		refused("directory-name-too-long", File(max+"n/x", "x")),
		refused("path-too-long", File(strings.Repeat("abcdefg/", 520)+"x", "x")),
		good("v7", Raw{Name: "file", Data: "seven"}.Entry, Raw{Name: "dir/"}.Entry,
			Raw{Name: "dir/file", Data: "x"}.Entry),
		good("regular-with-slash", Raw{Name: "file/", Type: '0', Magic: magicUSTAR,
			Data: "x"}.Entry),
		good("not-utf8", File(latin1, "x", Format(tar.FormatGNU)),
			Symlink("l", latin1, Format(tar.FormatGNU)),
			PAX("path", "pax-"+latin1), Raw{Name: "x", Type: '0', Magic: magicUSTAR}.Entry,
			File("new\nline\\and \"quotes\"\t", "x")),
		good("pax-size", PAX("size", "1000"),
			Raw{Name: "f", Type: '0', Magic: magicUSTAR, Size: 7,
				Data: strings.Repeat("s", 1000)}.Entry),
		good("pax-twice", PAX("path", "first", "mtime", "5"), PAX("path", "second"),
			Raw{Name: "x", Type: '0', Magic: magicUSTAR}.Entry),
		good("global-header", Global("pax_global_header"), File("f", "x")),
		good("global-header-replaces", File("d/pax_global_header", "x"),
			Global("d/pax_global_header"), File("f", "x")),
		good("global-header-makes-parents", Global("tmp/GlobalHead.1"), File("f", "x")),
		good("directory-with-size", Raw{Name: "d/", Type: '5', Magic: magicUSTAR, Size: 4096}.Entry,
			File("d/f", "x")),
		refused("contiguous-file", Raw{Name: "f", Type: '7', Magic: magicUSTAR, Data: "x"}.Entry),
		refused("unknown-type", Raw{Name: "f", Type: 'Z', Magic: magicUSTAR, Data: "x"}.Entry),
		refused("solaris-header", Raw{Name: "f", Type: 'X', Magic: magicUSTAR, Data: "x"}.Entry),
		good("uid-21-bits", File("f", "x", Owner(1<<21-1, 1<<21-1), Format(tar.FormatUSTAR))),
		good("uid-32-bits-gnu", File("f", "x", Owner(4294967294, 3000000000),
			Format(tar.FormatGNU))),
		good("uid-32-bits-pax", File("f", "x", Owner(4294967294, 3000000000),
			Format(tar.FormatPAX))),
		good("uid-beyond-32-bits", File("f", "x", Owner(1<<33+5, 1<<40+6), Format(tar.FormatPAX))),
		good("uid-minus-one", File("f", "x", Owner(4294967295, 4294967295), Format(tar.FormatPAX)),
			Dir("d", Owner(7, 8)), Dir("d", Owner(4294967295, 9), Format(tar.FormatPAX))),
		good("uid-negative", Raw{Name: "f", Type: '0', Magic: magicGNU,
			UID: [8]byte{255, 255, 255, 255, 255, 255, 255, 254}}.Entry),
		good("mtime", File("zero", "", Mtime(0, 0)), File("ns", "", Mtime(1, 123456789)),
			File("negative", "", Mtime(-5, 0), Format(tar.FormatPAX)),
			File("negative-ns", "", Mtime(-5, 5)), File("before-1970-by-ns", "",
				Mtime(-1, 999999999)),
			File("2038", "", Mtime(1<<31+1, 1)), File("2106", "", Mtime(1<<32+1, 0)), File("last",
				"", Mtime(9223372036, 854775807)),
			File("too-late", "", Mtime(9223372036, 854775808)), File("huge", "", Mtime(1<<62, 0),
				Format(tar.FormatPAX)),
			Dir("d", Mtime(7, 7)), File("d/f", ""), Symlink("l", "x", Mtime(3, 3))),
		good("mtime-in-odd-digits", PAX("mtime", "12.5"),
			Raw{Name: "f", Type: '0', Magic: magicUSTAR}.Entry,
			PAX("mtime", "13.1234567899"), Raw{Name: "g", Type: '0', Magic: magicUSTAR}.Entry,
			PAX("mtime", ""), Raw{Name: "h", Type: '0', Magic: magicUSTAR}.Entry),
		good("mtime-base-256", Raw{Name: "f", Type: '0', Magic: magicGNU,
			Mtime: [12]byte{0x80, 10: 1, 11: 2}}.Entry,
			Raw{Name: "g", Type: '0', Magic: magicGNU,
				Mtime: [12]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0}}.Entry),
		good("modes", File("suid", "x", Mode(0o4755)), File("sgid", "x", Mode(0o2755), Owner(5, 6)),
			Dir("sticky", Mode(0o1777)),
			File("none", "x", Mode(0)), File("all", "x", Mode(0o7777)), Dir("dir-none",
				Mode(0)), File("type-bits", "x", Mode(0o100640)),
			File("wrong-type-bits", "x", Mode(0o040755)), Symlink("l", "all", Mode(0o600))),
		good("setgid-directory", Dir("d", Mode(0o2755), Owner(3, 44)), File("d/implicit/f", "x"),
			Dir("d/sub"),
			File("d/f", "x", Owner(4294967295, 4294967295),
				Format(tar.FormatPAX)), File("d/.wh.gone", "")),
		good("devices", Device("chr", '3', 1, 3),
			Device("blk", '4', 8, 17, Mode(0o660), Owner(0, 6)), Device("fifo", '6', 0, 0),
			Device("fifo-with-number", '6', 5, 6), Device("wide", '3', 0xfff,
				0xfffff), Device("whiteout", '3', 0, 0, Mode(0o644))),
		good("device-too-wide", Device("chr", '3', 0x12345, 0x1234567)),
		refused("device-out-of-range", Device("chr", '3', 1<<33, 1, Format(tar.FormatGNU))),
		refused("device-negative", Device("chr", '3', -1, 1, Format(tar.FormatGNU))),
	}
}

func attributes() []Tar {
	capability := func(rev uint32, size int) string {
		b := make([]byte, size)
		binary.LittleEndian.PutUint32(b, rev<<24|1)
		b[5] = 0x20 // CAP_NET_RAW
		return string(b)
	}
	const caps = "security.capability"
	ping := capability(2, 20)
	rooted := capability(3, 24)[:20] + "\xe8\x03\x00\x00"
	return []Tar{
		good("xattrs", File("f", "x", Xattr("user.a", "1"), Xattr("user.empty", ""),
			Xattr("user.binary", "\x00\n=\xff"), Xattr("security.foo", "bar")),
			Dir("d", Xattr("user.on-directory", "d")), Device("p", '6', 0, 0,
				Xattr("security.on-fifo", "p")),
			Symlink("l", "f", Xattr("security.on-link", "l"))),
		good("xattrs-left-out", File("f", "x", Xattr("trusted.a", "1"),
			Xattr("trusted.overlay.opaque", "y"), Xattr("system.other", "1"), Xattr("odd", "1"),
			Xattr("a.b", "1")), Dir("d", Xattr("trusted.overlay.opaque", "y")),
			Symlink("l", "f", Xattr("user.on-link", "1")), Device("p", '6', 0, 0,
				Xattr("user.on-fifo", "1"))),
		refused("xattr-without-name", File("f", "x", Xattr("user.", "1"))),
		refused("xattr-empty-key", File("f", "x", Xattr("", "1"))),
		refused("xattr-long-name", File("f", "x", Xattr("user."+strings.Repeat("n", 251), "1"))),
		good("xattr-longest-name", File("f", "x", Xattr("user."+strings.Repeat("n", 250), "1"))),
		good("xattr-large", File("f", "x", Xattr("user.large", strings.Repeat("v", 3000)))),
		refused("xattr-too-large", File("f", "x",
			Xattr("user.large", strings.Repeat("v", 1<<16+1)))),
		good("capability", File("ping", "x", Mode(0o4755), Owner(1, 2), Xattr(caps, ping)),
			File("rooted", "x", Xattr(caps, rooted))),
		refused("capability-short", File("f", "x", Xattr(caps, ping[:12]))),
		refused("capability-revision-1", File("f", "x", Xattr(caps, capability(1, 12)))),
		good("capability-and-hard-link",
			File("ping", "x", Xattr(caps, ping), Xattr("user.stays", "y")), Link("lost", "ping"),
			File("ping2", "x", Xattr(caps, ping)), Link("kept", "ping2", Xattr(caps, ping))),
		good("directory-twice-joins-xattrs",
			Dir("d", Xattr("user.a", "1"), Xattr("user.b", "1"), Mode(0o700)), File("d/f", "x"),
			Dir("d", Xattr("user.b", "2"), Xattr("user.c", "2"), Owner(4, 5), Mtime(9, 9))),
	}
}

// acl makes an ACL's xattr from tag, permissions and id, one after the other.
func acl(entries ...uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < len(entries); i += 3 {
		b = binary.LittleEndian.AppendUint16(b, uint16(entries[i]))
		b = binary.LittleEndian.AppendUint16(b, uint16(entries[i+1]))
		b = binary.LittleEndian.AppendUint32(b, entries[i+2])
	}
	return string(b)
}

func acls() []Tar {
	const access, def = "system.posix_acl_access", "system.posix_acl_default"
	const userObj, user, groupObj, group, mask, other = 1, 2, 4, 8, 16, 32
	full := acl(userObj, 6, 0, user, 7, 1000, groupObj, 4, 0, group, 5, 50, mask, 7, 0, other, 1, 0)
	minimal := acl(userObj, 7, 0, groupObj, 5, 0, other, 5, 0)
	masked := acl(userObj, 7, 0, groupObj, 5, 0, mask, 1, 0, other, 5, 0)
	var tars []Tar
	for name, bad := range map[string]string{
		"no-mask": acl(userObj, 6, 0, user, 7, 1000, groupObj, 4, 0, other, 1,
			0), "no-other": acl(userObj, 6, 0, groupObj, 4, 0),
		"permissions": acl(userObj, 9, 0, groupObj, 4, 0, other, 1, 0), "order": acl(groupObj, 6, 0,
			userObj, 4, 0, other, 1, 0),
		"cut": full[:len(full)-3], "short": "\x02\x00", "id": acl(userObj, 6, 0, user, 7, 1<<32-1,
			groupObj, 4, 0, mask, 7, 0, other, 1, 0),
		"two-masks": acl(userObj, 7, 0, groupObj, 5, 0, mask, 1, 0, mask, 1, 0, other, 5,
			0), "tag": acl(userObj, 6, 0, 3, 4, 0),
		"behind-other": acl(userObj, 7, 0, groupObj, 5, 0, other, 5, 0, mask, 1, 0),
	} {
		tars = append(tars, refused("acl-bad-"+name, File("f", "x", Xattr(access, bad))))
	}
	return append(tars,
		good("acl", File("f", "x", Mode(0o640), Xattr(access, full)),
			File("minimal", "x", Mode(0o751), Xattr(access, minimal)),
			File("masked", "x", Mode(0o2777), Xattr(access, masked)), Dir("d", Xattr(access, full),
				Xattr(def, full)),
			File("none", "x", Xattr(access, acl())), File("empty", "x",
				Xattr(access, "")), File("version", "x", Xattr(access, "\x03\x00\x00\x00")),
			Device("p", '6', 0, 0, Mode(0o604), Xattr(access, full)), Symlink("l", "f",
				Xattr(access, full))),
		good("acl-default-is-inherited", Dir("d", Mode(0o750), Xattr(def, full)),
			File("d/f", "x", Mode(0o604)), Dir("d/sub", Mode(0o700)),
			File("d/implicit/f", "x"), Symlink("d/l", "f"), Device("d/p", '6', 0,
				0), File("d/.wh.gone", ""), File("d/sub/deep", "x"),
			Link("d/hard", "d/f", Mode(0o777)), File("outside", "x"), Link("d/from-outside",
				"outside")),
		good("acl-default-minimal", Dir("d", Xattr(def, minimal)), File("d/f", "x"), Dir("d/sub")),
		good("acl-mode-changes-later", File("f", "x", Xattr(access, full)),
			Link("g", "f", Mode(0o607)),
			Dir("d", Xattr(access, full)), Dir("d", Mode(0o711)), Dir("e", Xattr(access, full),
				Xattr(def, full)), Dir("e", Xattr(access, ""), Xattr(def, ""))),
		refused("acl-default-on-file", File("f", "x", Xattr(def, full))),
		good("acl-default-none-on-file", File("f", "x", Xattr(def, ""))),
	)
}
