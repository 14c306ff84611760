#!/usr/bin/env bash
# Runs every fuzz target of the repository, one after another, for a bounded time each.
#
#   script/fuzz.sh 20s
#
# A package is built once for all of its targets. What a run finds out stays in Go's
# cache, and the next run begins there; an input that fails stays in the package's
# testdata/fuzz, where the ordinary tests try it from then on: commit it with the repair.
#
# An input that reaches something new is made smaller ten times at most: without that bound
# fuzzers spend nearly all their time on it.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-20s}
cache=$(go env GOCACHE)/fuzz
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT

fuzz() { # DIR TARGET CORPUS
	if (cd "$1" && "$bin/test" -test.run '^$' -test.fuzz "^$2\$" -test.fuzztime "$time" -test.fuzzminimizetime 10x \
		-test.fuzzcachedir "$3" </dev/null >"$bin/log" 2>&1); then
		tail -n 2 "$bin/log"
		return
	fi
	# Go's fuzzer fails at times with this alone, when its time ends while it is making an input smaller.
	if grep -qx ' *context deadline exceeded' "$bin/log" && ! grep -q 'Failing input\|panic:' "$bin/log"; then
		tail -n 4 "$bin/log" | head -n 1
		return
	fi
	tail -n 100 "$bin/log"
	return 1
}

wanted=$(git grep -hoE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | wc -l)
ran=0 failed=0
for dir in $(git grep -lE '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do
	module=. package=./$dir
	if [[ $dir == integration* ]]; then module=integration package=./${dir#integration}; fi
	go -C "$module" test -c -fuzz . -o "$bin/test" "$package"
	corpus=$cache/$(go -C "$module" list "$package")
	mkdir -p "$corpus"
	for target in $("$bin/test" -test.list '^Fuzz'); do
		echo "== $dir $target"
		ran=$((ran + 1))
		fuzz "$dir" "$target" "$corpus" || failed=$((failed + 1))
	done
done
echo "fuzz: $ran targets, $failed failed"
if [ "$ran" -ne "$wanted" ]; then
	# a build tag or a file that is not built must not hide one
	echo "fuzz: the sources have $wanted targets" >&2
	exit 1
fi
[ "$failed" -eq 0 ]
