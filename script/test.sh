#!/usr/bin/env bash
# Runs the test steps that are named, one after another:
#
#   script/test.sh unit race integration | clients | kube | page | microbench REGEXP |
#                  matrix [FLAG...] | soak [FLAG...] | bench [FLAG...] | demo [FLAG...]
#
# All runs in process and mount namespaces of its own, so that nothing is left
# running or mounted afterwards, however it ends. The tests mount file systems
# on files in $TMPDIR, which must therefore lie on a real file system: it is
# made in $MICA_TEST_DIR, or in the first of TMPDIR, /var/tmp and build/ that
# is on one.
set -euo pipefail
cd "$(dirname "$0")/.."

real() { # DIR: on a file system that overlayfs and EROFS can stand on
	case $(stat -f -c %T "$1" 2>/dev/null || echo none) in
	none | overlayfs | tmpfs | ramfs | fuseblk | nfs | v9fs | UNKNOWN*) return 1 ;;
	esac
}

choose_dir() {
	local d
	mkdir -p build
	for d in ${MICA_TEST_DIR:+"$MICA_TEST_DIR"} "${TMPDIR:-/tmp}" /var/tmp "$PWD/build"; do
		if real "$d"; then mktemp -d "$d/mica.XXXXXX"; return; fi
	done
	echo "test: no directory on ext4, xfs or btrfs: set MICA_TEST_DIR" >&2
	return 1
}

step() {
	case $1 in
	unit) go test -timeout 10m ./... ;;
	race) # Each test once: under the race detector but for those of index, whose formats work in one
		# goroutine except where pulls extract at the same time, and of fs, except where much goes on
		# at the same time, because all of fs would take ten minutes, most of it to make images. fs
		# waits more than it works, and so goes beside the others. A process with the detector waits
		# a second at its end, which tests with many children pay for.
		local together='Announce|Busy|Complet|Evict|Fill|Give|HandOver|Lost|Promise|Quota'
		together+='|Loop|Removed|Replay|Restart|Stage|Sweep|Together'
		local failed=0
		local -x GORACE=atexit_sleep_ms=0
		(
			go test -timeout 10m ./index/... || failed=1
			go test -timeout 10m -skip "$together" ./fs || failed=1
			CGO_ENABLED=1 go test -race -timeout 20m -run "$together" ./index/bundle ./fs || failed=1
			exit $failed
		) &
		go list ./... | grep -Ev '/index|/fs$' |
			CGO_ENABLED=1 xargs go test -race -timeout 20m || failed=1
		wait $! || failed=1
		return $failed
		;;
	integration)
		local failed=0
		go -C integration test -count=1 -timeout 25m ./... || failed=1
		go -C integration/helm test -count=1 ./... || failed=1
		return $failed
		;;
	matrix) go -C integration test -count=1 -v -timeout 15m -run TestMatrix ./faults -update "${@:2}" ;;
	clients) go -C integration test -count=1 -timeout 15m -tags docker ./clients -update ;;
	kube)
		local d s # What is installed on this machine is gone afterwards.
		for d in etc usr/local; do
			mkdir -p "$TMPDIR/$d/up" "$TMPDIR/$d/work"
			mount -t overlay -o "lowerdir=/$d,upperdir=$TMPDIR/$d/up,workdir=$TMPDIR/$d/work" \
				overlay "/$d"
		done
		for d in var/lib var/log; do
			mkdir -p "$TMPDIR/$d"
			mount --bind "$TMPDIR/$d" "/$d"
		done
		mount -t tmpfs -o mode=755 tmpfs /run
		# What a kubelet would set for the whole machine seems to be set.
		for s in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
			kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
			echo "${s#*=}" >"$TMPDIR/sysctl"
			mount --bind "$TMPDIR/sysctl" "/proc/sys/${s%=*}"
			rm "$TMPDIR/sysctl"
		done
		go -C integration test -count=1 -v -timeout 15m -tags kube ./kube
		;;
	page)
		mkdir -p build/page
		go -C integration test -count=1 -v -timeout 10m -tags browser ./page -pictures "$PWD/build/page"
		;;
	soak)
		go -C integration test -count=1 -v -timeout 30m ./soak -long "${@:2}"
		go -C integration test -count=1 -v -timeout 30m ./sametree -run TestRandomImages -seed 1000 -seeds 1000
		;;
	bench) go -C integration run ./cmd/bench -out "$PWD/build/bench" "${@:2}" ;;
	microbench) go test -run '^$' -bench "$2" -benchmem ./... ;;
	demo) go -C integration run ./cmd/demo "${@:2}" ;;
	*) echo "test: no step $1" >&2; return 2 ;;
	esac
}

# inside runs in the namespaces, as their first process.
inside() {
	# as on any machine with systemd: mounts propagate, but not out of here
	mount --make-rshared /
	# shims put their sockets there; another containerd's stay out of the way
	mkdir -p /run/containerd && mount -t tmpfs -o mode=711 tmpfs /run/containerd
	case $1 in
	matrix | soak | bench | microbench | demo) step "$@" ;;
	*)
		local failed=0 s
		for s; do step "$s" || failed=1; done # all that fails is reported
		return $failed
		;;
	esac
}

if [ "${1:-}" = --inside ]; then
	shift
	inside "$@"
	exit
fi
[ "$(id -u)" = 0 ] || { echo "test: needs root" >&2; exit 1; }
TMPDIR=$(choose_dir)
export TMPDIR
chmod 711 "$TMPDIR" # containers in user namespaces are someone else, and pass through it
trap 'rm -rf --one-file-system "$TMPDIR"' EXIT
trap 'kill -KILL $child; wait; exit 130' INT TERM HUP
unshare --pid --fork --kill-child --mount --propagation slave --mount-proc script/test.sh --inside "$@" </dev/null &
child=$!
wait $child # unlike a command in the foreground, it lets a trap run at once
