#!/usr/bin/env bash
# Installs what Mica's tests, demo and linter need beyond Go and git.
#
#   script/tools.sh          Debian packages (root), containerd, shim, ctr, registry, erofs-utils
#   script/tools.sh page     Debian's Chromium and its driver, 300 MB (root)
#   script/tools.sh lint     golangci-lint only (no root)
#
# Binaries go to a cache that all clones of a user share ($MICA_CACHE, default
# ${XDG_CACHE_HOME:-~/.cache}/mica), in a folder named by what they are built
# from; build/bin and build/lint in the checkout are links to it. Everything is
# built from the Go module proxy or comes from the distribution's mirror. When
# all is there, nothing is run and no network is used.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
cache=${MICA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/mica}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

# gcc and libc6-dev: go test -race. procps, e2fsprogs, util-linux: in every
# ordinary system, but not in every minimal image.
packages=(runc fuse3 mmdebstrap containernetworking-plugins iproute2 e2fsprogs util-linux
	mount procps ca-certificates xz-utils zstd gcc libc6-dev systemd)
# of erofs-utils: what the tests judge by, and what containerd's EROFS snapshotter runs
erofs=(fsck.erofs dump.erofs mkfs.erofs)

say() { echo "tools: $*" >&2; }

installed() { dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }

apt_install() {
	local missing=() p
	for p in "${packages[@]}"; do installed "$p" || missing+=("$p"); done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || { say "install these packages, or run this as root: ${missing[*]}"; return 1; }
	say "installing ${missing[*]}"
	apt-get update -q >&2
	apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

# key FILE...: names a build by the contents of the files, the Go release and the machine.
key() { { cat "$@"; go env GOVERSION GOARCH; } | sha256sum | cut -c1-16; }

# build MODULE DIR: all tools of a module into DIR, which appears whole or not at all.
build() {
	local module=$1 dir=$2 tmp
	rm -rf "$dir".??????
	tmp=$(mktemp -d "$dir.XXXXXX")
	say "building $(cd "$module" && go list -e -f '{{.ImportPath}}' tool | xargs -n1 basename | paste -sd' ') into $dir (some minutes)"
	(cd "$module" && CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -buildvcs=false \
		-ldflags='-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2' -o "$tmp/" tool)
	if [ "$module" = integration/tools ]; then erofs_tools "$tmp" "$dir"; fi
	chmod 755 "$tmp"
	mv -T "$tmp" "$dir"
}

# erofs_tools TMP DIR: links to the system's erofs tools if they know 512-byte
# blocks (1.7 or later; Debian 12 has 1.5), or else those of the next release,
# unpacked with the libraries (libc too) that they were built for. TMP is DIR
# while it is being made.
erofs_tools() {
	local tmp=$1 dir=$2 suite keyring id mirror root tool loader libs
	if installed erofs-utils && dpkg --compare-versions "$(dpkg-query -W -f='${Version}' erofs-utils)" ge 1.7; then
		for tool in "${erofs[@]}"; do ln -s "$(command -v $tool || echo /usr/bin/$tool)" "$tmp/$tool"; done
		return
	fi
	id=$(. /etc/os-release && echo "$ID")
	case $id in
	debian) suite=trixie keyring=/usr/share/keyrings/debian-archive-keyring.gpg ;;
	ubuntu) suite=noble keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg ;;
	*) say "no erofs-utils 1.7 or later: install it"; return 1 ;;
	esac
	# the mirror that this machine already uses
	apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' >"$tmp/targets"
	if ! [ -s "$tmp/targets" ]; then
		apt-get update -q >&2
		apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' >"$tmp/targets"
	fi
	mirror=$(awk -v id="$id" 'tolower($2) == id && $3 == "main" && $1 !~ /security/ {print $1; exit}' "$tmp/targets")
	rm "$tmp/targets"
	root=$tmp/erofs
	mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial"
	echo "deb [signed-by=$keyring] ${mirror:?no package mirror is configured} $suite main" >"$root/apt/sources.list"
	# an empty status file makes apt resolve the libraries too, as for an empty system
	: >"$root/apt/status"
	local opts=(-q -o "Dir::Etc::sourcelist=$root/apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State=$root/apt"
		-o "Dir::State::lists=$root/apt/lists" -o "Dir::State::status=$root/apt/status" -o "Dir::Cache=$root/apt"
		-o "Dir::Cache::archives=$root/apt/archives" -o APT::Sandbox::User=root -o APT::Install-Recommends=false)
	say "unpacking erofs-utils of $suite"
	apt-get "${opts[@]}" update >&2
	apt-get "${opts[@]}" install -y --download-only erofs-utils >&2
	for deb in "$root"/apt/archives/*.deb; do dpkg -x "$deb" "$root"; done
	rm -rf "$root/apt" "$root/usr/share"
	loader=$(cd "$root" && find . -name 'ld-linux*.so*' | head -1)
	libs=$(cd "$root" && find . -name 'libc.so.6' -printf '%h\n' | head -1)
	for tool in "${erofs[@]}"; do
		printf '#!/bin/sh\nroot=%q\nexec "$root/%s" --library-path "$root/%s" "$root/%s" "$@"\n' \
			"$dir/erofs" "$loader" "$libs" "$(cd "$root" && find . -name $tool | head -1)" >"$tmp/$tool"
		chmod 755 "$tmp/$tool"
		"$root/$loader" --library-path "$root/$libs" "$root"/usr/bin/$tool --help >/dev/null 2>&1 || [ $? -lt 126 ]
	done
}

# provide MODULE LINK FILE...: LINK leads to the module's tools, built if need be.
provide() {
	local module=$1 link=$2 dir
	dir=$cache/tools/$(key "$module/go.mod" "$module/go.sum" "${@:3}")
	mkdir -p "$cache/tools" build
	if ! [ -d "$dir" ]; then
		exec 9>"$cache/tools/lock"
		flock 9 # another clone may be building the same
		[ -d "$dir" ] || build "$module" "$dir"
		exec 9>&-
	fi
	[ "$(readlink "$link" || true)" = "$dir" ] || ln -sfnT "$dir" "$link"
}

case ${1:-} in
"")
	apt_install
	provide integration/tools "$checkout/build/bin" script/tools.sh
	;;
page)
	packages=(chromium chromium-driver fonts-dejavu-core)
	apt_install
	;;
lint) provide integration/tools/lint "$checkout/build/lint" ;;
*) echo "usage: $0 [page|lint]" >&2; exit 2 ;;
esac
