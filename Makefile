# make build test lint demo: the same commands on a desk and in CI (.ci/run).
# Needs Go and git; test and demo also root, and install the rest by themselves.

PREFIX   ?= /usr/local
UNITDIR  ?= $(PREFIX)/lib/systemd/system
FUZZTIME ?= 20s
BENCH    ?= .
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
MODULES  := . integration integration/helm

export PATH := $(CURDIR)/bin:$(CURDIR)/build/bin:$(CURDIR)/build/docker:$(CURDIR)/build/kube:$(PATH)

.PHONY: all build install tools test unit race integration clients kube matrix page soak lint fmt \
	fuzz bench microbench demo release clean

all: build

build: ## static binaries bin/micad and bin/mica
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/micad ./cmd/mica

install: build
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin bin/micad bin/mica
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' script/micad.service >$(DESTDIR)$(UNITDIR)/micad.service

tools: ## Debian packages and the binaries that tests and demo need, in build/bin
	script/tools.sh

test: tools build ## everything: packages, data races, end to end
	script/test.sh race integration

unit race integration: tools build
	script/test.sh $@

matrix: tools build ## the fault matrix alone, written into docs/reliability.md
	script/test.sh matrix

clients: tools build ## clients of containerd, into docs/clients.md; builds Docker, Compose and BuildKit
	CGO_ENABLED=0 go -C integration/tools/docker build -trimpath -buildvcs=false \
		-tags exclude_graphdriver_btrfs,no_oci_worker -o $(CURDIR)/build/docker/ tool
	CGO_ENABLED=0 go -C integration/tools/compose build -trimpath -buildvcs=false \
		-o $(CURDIR)/build/docker/docker-compose tool
	script/test.sh clients

kube: tools build ## pods and the chart on a real Kubernetes; builds it (20 minutes at first)
	CGO_ENABLED=0 go -C integration/tools/kube build -trimpath -buildvcs=false \
		-ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2' \
		-o $(CURDIR)/build/kube/ tool
	ln -sf server build/kube/etcd
	script/test.sh kube

page: tools build ## micad's page in Chromium, with pictures in build/page
	script/tools.sh page
	script/test.sh page

soak: tools build ## faults under load, and random images, for minutes (docs/reliability.md)
	script/test.sh soak

lint:
	script/lint.sh $(MODULES)

fmt:
	gofmt -w $$(git ls-files '*.go')

fuzz: ## each fuzz target for FUZZTIME
	script/fuzz.sh $(FUZZTIME)

bench: tools build ## time to ready beside other snapshotters (docs/bench.md); for instance BENCHFLAGS=-quick
	script/test.sh bench $(BENCHFLAGS)

microbench: tools build ## the packages' benchmarks, or those that match BENCH
	script/test.sh microbench '$(BENCH)'

release: ## deb, rpm, tarballs, SBOMs, image and chart in build/release; the same commit gives the same bytes
	script/release/make.sh $(VERSION) build/release

demo: tools build ## the same program by overlayfs and by Mica, behind a simulated network
	script/test.sh demo

clean:
	rm -rf bin build
