# sca-probe: build, demonstrate, test. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PREFIX ?= /usr/local
BUILD  := build
PROBE  := $(BUILD)/bin/sca-probe
PYLIB  := $(BUILD)/lib/sca-probe/python
ENGINE := $(PYLIB)/sca_probe/_engine.abi3.so
RECONCILER := $(BUILD)/reconciler.so
RECONCILERS := $(RECONCILER) $(BUILD)/reconciler-agent.so
VENV   := build/demo-venv
AGENT  := build/agent-venv
DIST   := build/dist

GO_SOURCES := $(shell find $(wildcard bpf cmd pkg) -name '*.go' ! -name '*_test.go' -o -name '*.o') go.mod go.sum
C_SOURCES  := $(wildcard cmd/sca-engine/*.h cmd/sca-engine/extension/*.[ch])
PY_SOURCES := $(shell find python -name '*.py')
PY_BUILT   := $(PY_SOURCES:python/%=$(PYLIB)/%)
BPF_C      := $(filter-out bpf/vmlinux%,$(wildcard bpf/*.[ch]))

# Python's headers, of any version from 3.8 on: the engine uses the stable ABI alone.
export CGO_CFLAGS = -O2 -g $(shell scripts/python-include 2>/dev/null)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## install what building and the demo need (says what; asks for root only then)
	@scripts/install-deps build

.PHONY: deps-dev
deps-dev: ## install what generating and linting need besides
	@scripts/install-deps build dev

.PHONY: build
build: deps $(PROBE) $(ENGINE) $(PY_BUILT) ## build the observer and the engine into build/

$(PROBE) $(RECONCILERS) $(ENGINE): | deps

$(PROBE): $(GO_SOURCES)
	CGO_ENABLED=0 go build -o $@ ./cmd/sca-probe

# Twice: with the client of the Datadog Agent, which has more than double the size, and without.
$(BUILD)/reconciler-agent.so: TAGS := agent
$(RECONCILERS): $(GO_SOURCES) cmd/sca-engine/host.h scripts/go-overlay
	scripts/go-overlay $(CURDIR)/build/_overlay
	CGO_ENABLED=1 go build -buildmode=c-shared -overlay build/_overlay/overlay.json -tags '$(ENGINE_TAGS) $(TAGS)' \
		-ldflags '-s -w' -o $@ ./cmd/sca-engine
	rm -f $(@:.so=.h)

# One file: the extension, with both reconcilers as data in it. CPython's own symbols come from the process.
$(ENGINE): $(RECONCILERS) $(C_SOURCES)
	@mkdir -p $(@D)
	$(CC) $(CGO_CFLAGS) -std=gnu11 -Wall -Wextra -fPIC -fvisibility=hidden -shared -o $@ \
		-DSCA_RECONCILER='"$(CURDIR)/$(RECONCILER)"' \
		-DSCA_AGENT_RECONCILER='"$(CURDIR)/$(BUILD)/reconciler-agent.so"' $(filter %.c,$(C_SOURCES)) \
		-Wl,--unresolved-symbols=ignore-all -Wl,-z,now -ldl -lpthread

$(PYLIB)/%.py: python/%.py
	install -D -m 644 $< $@

# An engine that fails on demand, for the tests of its failures.
.PHONY: engine-with-faults
engine-with-faults:
	@$(MAKE) BUILD=build/faults ENGINE_TAGS=faults build

.PHONY: wheel
wheel: build $(DIST)/ready ## build the engine's wheel into build/dist
	@ls $(DIST)/*.whl

$(DIST)/ready: pyproject.toml scripts/wheel_tag.py $(ENGINE) $(PY_SOURCES) python/sca_probe.pth README.md build/wheel-venv/ready
	rm -rf $(@D)
	build/wheel-venv/bin/pyproject-build --wheel --outdir $(@D) . >/dev/null
	touch $@

.PHONY: pythons
pythons: ## supply the interpreters that the tests run on, where the machine lacks them
	@scripts/install-deps build test
	@scripts/pythons

.PHONY: pythons-all
pythons-all: ## supply those that test-all covers besides
	@scripts/install-deps build test test-all
	@scripts/pythons --all

build/%-venv/ready: testenv/requirements-%.txt
	rm -rf $(@D)
	$$(scripts/demo-python) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

.PHONY: servers
servers: deps ## install the servers that tests of forks run
	@scripts/servers $(if $(SCA_PROBE_TEST_ALL),--all)

.PHONY: test-agent
test-agent: deps $(AGENT)/ready ## install the Agent that tests of Remote Configuration talk to

.PHONY: frozen
frozen: deps build/frozen-venv/ready ## install PyInstaller, which tests freeze a program with

.PHONY: ddtrace
ddtrace: deps ## install the ddtrace that tests run under
	@scripts/ddtrace $(if $(SCA_PROBE_TEST_ALL),--all)

.PHONY: ddtrace-all
ddtrace-all: deps ## install those that bench, and test-all, cover besides
	@scripts/ddtrace --all

.PHONY: django
django: deps ## install the Django that benchmarks observe
	@scripts/packages build/django 3.10 $$(grep -v '^#' testenv/requirements-django.txt)

.PHONY: demo
demo: build $(VENV)/ready ## close the loop once on a real Flask service, narrated
	go run ./testenv/demo $(PROBE) $(VENV)/bin/python testenv/demo/app.py

.PHONY: test
test: build engine-with-faults wheel pythons test-agent servers ddtrace frozen ## run every test (those on eBPF as root, by sudo where need be)
	@scripts/as-root true
	go test -timeout $(if $(SCA_PROBE_TEST_ALL),6h,30m) -p 2 -exec "$(CURDIR)/scripts/as-root" ./...

.PHONY: test-all
test-all: export SCA_PROBE_TEST_ALL = 1
test-all: pythons-all test library fuzz bench ## run the tests on every interpreter there is, then the benchmarks

.PHONY: library
library: build pythons ## run CPython's own tests, of every version, with every function that they run patched
	@scripts/as-root true
	go test -timeout 4h -parallel 2 -v -exec "$(CURDIR)/scripts/as-root" ./testenv/libtest -all

.PHONY: record
record: pythons ## record anew the process memory that tests replay, where a reader reads more than it did
	go run -exec "$(CURDIR)/scripts/as-root" ./testenv/record

FUZZTIME ?= 30s

.PHONY: fuzz
fuzz: ## look for inputs that break what reads hostile bytes, for FUZZTIME (30s) each
	@grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' pkg | sort | while IFS=: read -r file fuzz; do \
		go test -run '^$$' -fuzz "^$${fuzz#func }$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "./$${file%/*}"; \
	done

.PHONY: bench
bench: build pythons ddtrace-all django ## measure the engine beside a wrapper and sys.monitoring, the observer beside bpftrace
	@scripts/install-deps bench
	@scripts/as-root true
	go test -timeout 2h -run '^$$' -bench . -benchtime 1x -exec "$(CURDIR)/scripts/as-root" ./testenv/loop ./testenv/wheel ./pkg/loader ./pkg/observer ./pkg/pyframes

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
