#!/usr/bin/env bash
# Runs every fuzz target of the repository for a bounded time each.
#
#   script/fuzz.sh 20s
#
# An input that reaches something new is made smaller ten times at most: without that bound
# fuzzers spend nearly all their time on it.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-20s}
git ls-files '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z0-9_]+' | sort | while IFS=: read -r file name; do
	name=${name#func }
	dir=$(dirname "$file")
	module=.
	if [[ $dir == integration* ]]; then module=integration dir=${dir#integration}; fi
	echo "== ./$dir $name"
	go -C "$module" test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 10x "./$dir" </dev/null
done
