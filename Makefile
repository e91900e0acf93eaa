# sca-probe: build, demonstrate, test. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PREFIX ?= /usr/local
PROBE  := build/bin/sca-probe
PYLIB  := build/lib/sca-probe/python
ENGINE := $(PYLIB)/sca_probe/_engine.abi3.so
VENV   := build/demo-venv

GO_SOURCES := $(shell find $(wildcard bpf cmd pkg) -name '*.go' ! -name '*_test.go' -o -name '*.o') go.mod go.sum
C_SOURCES  := $(wildcard cmd/sca-engine/*.[ch])
PY_SOURCES := $(shell find python -name '*.py')
PY_BUILT   := $(PY_SOURCES:python/%=$(PYLIB)/%)
BPF_C      := $(filter-out bpf/vmlinux%,$(wildcard bpf/*.[ch]))

# Python's headers, of any version from 3.8 on: the engine uses the stable ABI alone.
export CGO_CFLAGS = -O2 -g $(shell scripts/python-include 2>/dev/null)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## install what building and the demo need (says what; asks for root only then)
	@scripts/install-deps build

.PHONY: deps-dev
deps-dev: ## install what generating and linting need besides
	@scripts/install-deps build dev

.PHONY: build
build: deps $(PROBE) $(ENGINE) $(PY_BUILT) ## build the observer and the engine into build/

$(PROBE) $(ENGINE): | deps

$(PROBE): $(GO_SOURCES)
	CGO_ENABLED=0 go build -o $@ ./cmd/sca-probe

$(ENGINE): $(GO_SOURCES) $(C_SOURCES)
	CGO_ENABLED=1 go build -buildmode=c-shared -o $@ ./cmd/sca-engine
	rm -f $(@:.so=.h)

$(PYLIB)/%.py: python/%.py
	install -D -m 644 $< $@

.PHONY: pythons
pythons: ## unpack the interpreters that the tests run on, where the machine lacks them
	@scripts/pythons

$(VENV)/ready: testenv/requirements-demo.txt
	rm -rf $(VENV)
	$$(scripts/demo-python) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

.PHONY: demo
demo: build $(VENV)/ready ## close the loop once on a real Flask service, narrated
	go run ./testenv/demo $(PROBE) $(VENV)/bin/python testenv/demo/app.py

.PHONY: test
test: build pythons ## run every test (those on eBPF as root, by sudo where need be)
	@scripts/as-root true
	go test -timeout 30m -p 2 -exec "$(CURDIR)/scripts/as-root" ./...

.PHONY: test-all
test-all: test bench ## run the tests, then the benchmarks

.PHONY: bench
bench: build pythons ## measure the hook beside a wrapper and sys.monitoring, and the time to patch
	@scripts/as-root true
	go test -run '^$$' -bench . -benchtime 1x -exec "$(CURDIR)/scripts/as-root" ./testenv/loop

.PHONY: generate
generate: deps-dev ## compile the kernel programs in bpf/
	BPF2GO_CC=clang-19 BPF2GO_STRIP=llvm-strip-19 go generate ./bpf

.PHONY: lint
lint: deps-dev ## check style: clang-format, go vet, golangci-lint
	clang-format-19 --dry-run -Werror $(BPF_C) $(C_SOURCES)
	go vet ./...
	go tool -modfile=tools/go.mod golangci-lint run ./...

.PHONY: install
install: build ## install into PREFIX (default /usr/local)
	install -D -m 755 $(PROBE) $(DESTDIR)$(PREFIX)/bin/sca-probe
	@# install(1) replaces files; writing over an engine that a process has loaded would crash it.
	cd build && find lib -name '*.py' -o -name '*.so' | while read -r file; do \
		install -D -m 644 "$$file" "$(DESTDIR)$(abspath $(PREFIX))/$$file"; \
	done

.PHONY: clean
clean: ## remove everything that was built
	rm -rf build
