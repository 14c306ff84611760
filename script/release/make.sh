#!/usr/bin/env bash
# Makes a release: [ARCHES="amd64 …"] [FORMATS="deb image …"] script/release/make.sh VERSION DIR
#
# For each architecture a deb, an rpm, a static tarball and its SBOM (CycloneDX); of all of them one
# container image (an OCI layout in a tar) and the Helm chart that installs it on nodes; SHA256SUMS.
# The same commit gives the same bytes with the same Go release: times are the commit's.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# = 2 ] || { sed -n 2p "$0" >&2; exit 2; }
# A package's version begins with a digit, and sorts before the release that it leads to.
version=${1#v} out=$2
case $version in [0-9]*.*) ;; *) version=0.0.0~$version ;; esac
formats=${FORMATS:-deb rpm tar image chart}
tag=${version//[~+]/-} # what images and charts are called allows neither
export CGO_ENABLED=0 LC_ALL=C TZ=UTC
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tools=$work/tools
go -C integration/tools/release build -trimpath -buildvcs=false -o "$tools/" tool

build() { # DIR [TAG]: what GOARCH names
	go build -trimpath -buildvcs=false -tags "${2:-}" -ldflags "-s -w -X main.version=$version" \
		-o "$1/" ./cmd/micad ./cmd/mica
}
archive() { # DIR NAME...: what is in DIR as a tar
	tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
		--mode=u=rwX,go=rX -C "$1" -c "${@:2}"
}
pack() { # FILE DIR: DIR's folder as a tarball
	archive "$(dirname "$2")" "$(basename "$2")" | gzip -9n >"$1"
}

# what is the same on all: manual, completions, unit, configuration
build "$work/host" manual
common=$work/common
mkdir -p "$common/man" "$common/completions"
"$work/host/mica" man "$common/man"
"$work/host/micad" man "$common/man"
rm "$common"/man/*-completion*
gzip -9n "$common"/man/*.1
"$work/host/mica" completion bash >"$common/completions/mica.bash"
"$work/host/mica" completion zsh >"$common/completions/_mica"
"$work/host/mica" completion fish >"$common/completions/mica.fish"
# nothing is set in it: a later version's defaults count
"$work/host/micad" config default | sed 's/^[^[]/# &/' >"$common/config.toml"
sed 's|/usr/local/bin/|/usr/bin/|' script/micad.service >"$common/micad.service"

rm -rf "$out"
mkdir -p "$out"
layers=()
for arch in ${ARCHES:-amd64 arm64}; do
	built=$work/$arch
	GOARCH=$arch build "$built"
	cp -r "$common/." "$built"
	sed "s|\${ARCH}|$arch|; s|\${VERSION}|$version|; s|\${BUILD}|$built|" \
		script/release/nfpm.yaml >"$work/nfpm.yaml"
	for format in $formats; do
		case $format in
		chart) ;; # below
		image)
			tree=$work/image-$arch
			install -D -t "$tree/usr/bin" "$built/mica" "$built/micad"
			install -D -m 644 -t "$tree/usr/lib/systemd/system" "$built/micad.service"
			install -D -m 644 LICENSE "$tree/usr/share/doc/mica/copyright"
			archive "$tree" usr | gzip -9n >"$work/$arch.tar.gz"
			layers+=("$arch=$work/$arch.tar.gz")
			;;
		tar)
			folder=$work/mica-$version-linux-$arch
			mkdir "$folder"
			cp -r "$built/." LICENSE README.md "$folder"
			cp script/micad.service "$folder/micad.service" # for /usr/local/bin
			pack "$out/$(basename "$folder").tar.gz" "$folder"
			"$tools/cyclonedx-gomod" bin -json -noserial -output "$work/sbom" "$built/micad" \
				2>"$work/log" || { cat "$work/log" >&2; exit 1; }
			sed "s|\"timestamp\": \"[^\"]*\"|\"timestamp\": \"$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)\"|" \
				"$work/sbom" >"$out/mica-$version-linux-$arch.cdx.json"
			;;
		*) "$tools/nfpm" package -f "$work/nfpm.yaml" -p "$format" -t "$out/" >&2 ;;
		esac
	done
done
if [ ${#layers[@]} -gt 0 ]; then
	go -C integration run -buildvcs=false ./cmd/image "$work/layout" \
		"ghcr.io/mica-snapshotter/mica:$tag" "$SOURCE_DATE_EPOCH" "${layers[@]}"
	archive "$work/layout" blobs index.json oci-layout >"$out/mica-$version-image.tar"
fi
if [[ $formats == *chart* ]]; then
	cp -r script/chart "$work/mica"
	sed -i "s|^version: .*|version: $tag|; s|^appVersion: .*|appVersion: $tag|" \
		"$work/mica/Chart.yaml"
	pack "$out/mica-$tag.tgz" "$work/mica"
fi
(cd "$out" && sha256sum -- * >"$work/sums" && mv "$work/sums" SHA256SUMS)
cat "$out/SHA256SUMS"
