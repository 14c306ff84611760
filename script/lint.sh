#!/usr/bin/env bash
# Formatting, vet, golangci-lint (import rules: .golangci.yml) and tidiness of
# the modules whose folders are given. Reports all it finds, then fails.
set -uo pipefail
cd "$(dirname "$0")/.."
script/tools.sh lint || exit
linter=$PWD/build/lint/golangci-lint
status=0

unformatted=$(gofmt -l $(git ls-files '*.go'))
if [ -n "$unformatted" ]; then
	printf 'gofmt differs (make fmt):\n%s\n' "$unformatted"
	status=1
fi
for module in "$@"; do
	go -C "$module" vet ./... || status=1
	(cd "$module" && "$linter" run ./...) || status=1
done
for module in $(git ls-files '*go.mod'); do
	go -C "$(dirname "$module")" mod tidy -diff || status=1
done
for script in script/*.sh .ci/run; do
	bash -n "$script" || status=1
done
exit $status
