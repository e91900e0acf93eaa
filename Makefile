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

GO_SOURCES := $(shell find bpf cmd pkg -name '*.go' -o -name '*.o') go.mod go.sum
C_SOURCES  := $(wildcard cmd/sca-engine/*.[ch])
PY_SOURCES := $(shell find python -name '*.py')

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
build: deps $(PROBE) $(ENGINE) ## build the observer and the engine into build/

$(PROBE): $(GO_SOURCES)
	CGO_ENABLED=0 go build -o $@ ./cmd/sca-probe

$(ENGINE): $(GO_SOURCES) $(C_SOURCES) $(PY_SOURCES)
	mkdir -p $(PYLIB)
	cp -r python/. $(PYLIB)/
	CGO_ENABLED=1 go build -buildmode=c-shared -o $@ ./cmd/sca-engine
	rm -f $(PYLIB)/sca_probe/_engine.abi3.h

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
test: build pythons ## run every test (the eBPF tests need root)
	@scripts/need-root
	go test -timeout 30m -p 2 ./...

.PHONY: test-all
test-all: test bench ## run the tests, then the benchmarks

.PHONY: bench
bench: build pythons ## measure the hook beside a wrapper and sys.monitoring, and the time to patch
	go test -run '^$$' -bench . -benchtime 1x ./testenv/loop

.PHONY: generate
generate: deps-dev ## compile the kernel programs in bpf/
	go generate ./bpf

.PHONY: lint
lint: deps-dev ## check style: golangci-lint, clang-format
	clang-format-19 --dry-run -Werror bpf/*.c cmd/sca-engine/*.[ch]
	go tool -modfile=tools/go.mod golangci-lint run ./...

.PHONY: install
install: build ## install into PREFIX (default /usr/local)
	install -D -m 755 $(PROBE) $(DESTDIR)$(PREFIX)/bin/sca-probe
	mkdir -p $(DESTDIR)$(PREFIX)/lib/sca-probe
	cp -r $(PYLIB) $(DESTDIR)$(PREFIX)/lib/sca-probe/

.PHONY: clean
clean: ## remove everything that was built
	rm -rf build
