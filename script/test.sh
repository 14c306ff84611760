#!/usr/bin/env bash
# Runs the test steps that are named, one after another:
#
#   script/test.sh unit race integration | bench REGEXP | demo
#
# The tests mount file systems on files in $TMPDIR, which must therefore lie on
# a real file system: $MICA_TEST_DIR, or the first of TMPDIR, /var/tmp and
# build/ that is on one. What a test leaves mounted there is unmounted, and is
# an error.
set -euo pipefail
cd "$(dirname "$0")/.."

real() { # DIR: exists on a file system that overlayfs and EROFS can stand on
	case $(stat -f -c %T "$1" 2>/dev/null || echo none) in
	none | overlayfs | tmpfs | ramfs | fuseblk | nfs | v9fs | UNKNOWN*) return 1 ;;
	esac
}

choose_dir() {
	local d
	mkdir -p build
	for d in ${MICA_TEST_DIR:+"$MICA_TEST_DIR"} "${TMPDIR:-/tmp}" /var/tmp "$PWD/build"; do
		if real "$d"; then mktemp -d "$d/mica-test.XXXXXX"; return; fi
	done
	echo "test: no directory on ext4, xfs or btrfs: set MICA_TEST_DIR" >&2
	return 1
}

# mounted DIR: the mount points below DIR, innermost first
mounted() { awk -v d="$1/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | tac; }

finish() {
	local status=$? left
	left=$(mounted "$TMPDIR")
	if [ -n "$left" ]; then
		printf 'test: left mounted:\n%s\n' "$left" >&2
		xargs -r -d '\n' -n1 umount -l <<<"$left" || true
		[ $status != 0 ] || status=1
	fi
	rm -rf --one-file-system "$TMPDIR"
	exit $status
}

# in_group CMD...: runs CMD; it and all that it started in its process group end with this script
in_group() {
	set -m
	"$@" </dev/null &
	child=$!
	set +m
	wait "$child"
}
interrupt() {
	[ -z "${child:-}" ] || kill -TERM -- "-$child" 2>/dev/null || true
	wait || true
	exit 130
}

TMPDIR=$(choose_dir)
export TMPDIR
trap finish EXIT
trap interrupt INT TERM HUP

while [ $# -gt 0 ]; do
	case $1 in
	unit) in_group go test -timeout 10m ./... ;;
	race) in_group env CGO_ENABLED=1 go test -race -timeout 15m ./... ;;
	integration) in_group go -C integration test -timeout 25m ./... ;;
	bench)
		in_group go test -run '^$' -bench "${2:-.}" -benchmem ./...
		in_group go -C integration test -run '^$' -bench "${2:-.}" -timeout 60m ./...
		shift
		;;
	demo) in_group go -C integration run ./cmd/demo ;;
	*) echo "test: no step $1" >&2; exit 2 ;;
	esac
	shift
done
