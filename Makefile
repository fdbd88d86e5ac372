# DataCrumbs: what a developer and CI need. `make help` lists the targets.
#
# PYTHON  the interpreter the environment is made from: the system's own, because that one sees
#         the distribution's BCC bindings, wherever `python3` on PATH leads
# VENV    the environment: below the checkout if ordinary users can reach it there (tests run
#         commands as such users), else a directory of /var/tmp

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # apt has one lock, and pip changes one environment

PYTHON ?= /usr/bin/python3
ifndef VENV
VENV := $(shell d="$(CURDIR)"; \
	while [ "$$d" != / ]; do \
	  [ $$((0$$(stat -c %a "$$d") & 1)) = 1 ] || closed=1; \
	  d=$$(dirname "$$d"); \
	done; \
	if [ -z "$$closed" ]; then echo "$(CURDIR)/.venv"; \
	else echo "/var/tmp/datacrumbs-$$(echo "$(CURDIR)" | cksum | cut -d' ' -f1)/venv"; fi)
endif

# Debian's names. Building: clang, bpftool, gcc, python3-venv, headers of libbpf, libc and Slurm.
# Running: libbpf1. `make demo` needs no more.
PACKAGES := bpftool clang gcc libbpf-dev libbpf1 libc6-dev libslurm-dev python3 python3-venv

# What tests run, trace, boot or check with.
TEST_PACKAGES := acl busybox-static chromium chromium-driver cpio debootstrap e2fsprogs fio \
	fonts-dejavu-core fuse2fs g++ gcc-aarch64-linux-gnu git groff-base iproute2 kmod \
	libc6-dev-arm64-cross libcap2-bin libhdf5-openmpi-dev libopenmpi-dev libseccomp2 \
	liburing-dev linux-headers-$(shell dpkg --print-architecture) musl-tools openmpi-bin \
	openssh-client openssh-server patchelf python3-bpfcc qemu-system-arm qemu-system-x86 \
	sqlite3 strace systemd systemtap-sdt-dev tar time util-linux xfsprogs xz-utils zstd
BENCH_PACKAGES := bpftrace linux-perf

export PIP_ROOT_USER_ACTION := ignore
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# the tests are of what is installed, not of what lies here
unexport PYTHONPATH
# whatever the umask, ordinary users can read what is installed
run := umask 022 && PATH="$(VENV)/bin:$$PATH" $(VENV)/bin/python -P

sources := pyproject.toml README.md Makefile $(shell find meson.build bpf datacrumbs docs etc \
	examples scheduler systemd -not -name __pycache__ -not -name '*.pyc' 2>/dev/null)

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: setup
setup: test-packages $(VENV)/.development $(VENV)/.installed ## Install all that developing needs, and datacrumbs

# $(call install,PACKAGES): those that are missing; nothing is fetched when none is
define install
	@missing=$$(for p in $(1); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null \
	  | grep -qx installed || echo $$p; done); \
	[ -z "$$missing" ] || { \
	  [ "$$(id -u)" = 0 ] || { echo "as root: apt-get install $$missing" >&2; exit 1; }; \
	  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y \
	    --no-install-recommends $$missing; }
endef

.PHONY: packages
packages:
	$(call install,$(PACKAGES))

.PHONY: test-packages
test-packages:
	$(call install,$(TEST_PACKAGES))

.PHONY: bench-packages
bench-packages:
	$(call install,$(BENCH_PACKAGES))

$(VENV)/bin/python: | packages
	umask 022 && mkdir -p $(dir $(VENV))
	@[ -O $(dir $(VENV)) ] || { echo "$(dir $(VENV)) belongs to somebody else" >&2; exit 1; }
	umask 022 && $(PYTHON) -m venv --system-site-packages $(VENV)

# $(call requirements,EXPRESSION): installs those that pyproject.toml, which is `p`, has there
define requirements
	$(run) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	  print(*$(1), sep="\n")' > $@.txt
	$(run) -m pip install --quiet -r $@.txt
	touch $@
endef

# to build and to run
$(VENV)/.dependencies: pyproject.toml | $(VENV)/bin/python
	$(call requirements,p["build-system"]["requires"] + p["project"]["dependencies"])

# to test, check and measure
$(VENV)/.development: pyproject.toml | $(VENV)/.dependencies
	$(call requirements,p["project"]["optional-dependencies"]["dev"])

# a wheel, not an editable install: what the tests see is what a site gets
$(VENV)/.installed: $(sources) | $(VENV)/.dependencies
	$(run) -m pip install --quiet --no-build-isolation --no-deps \
	  --config-settings=setup-args=-Dwerror=true .
	touch $@

# DFTracer's own tools, which tests let read our exports; not beside ours, whose versions they fix
$(VENV)/dfanalyzer/.installed: | $(VENV)/bin/python
	umask 022 && $(PYTHON) -m venv $(VENV)/dfanalyzer
	umask 022 && $(VENV)/dfanalyzer/bin/python -P -m pip install --quiet \
	  dftracer-analyzer==0.0.9 dftracer-utils==0.0.12
	touch $@

.PHONY: lint
lint: $(VENV)/.development $(VENV)/.installed ## Check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# of the nodes of the cluster that tests start; kept in /var/cache/datacrumbs-tests
.PHONY: images
images: setup
	@[ "$$(id -u)" = 0 ] || { echo "the tests need root" >&2; exit 1; }
	$(run) tests/cluster/image.py

.PHONY: test
test: setup lint images $(VENV)/dfanalyzer/.installed ## All tests that this machine can run (root, BPF); a skipped test is a failure
	$(run) -m pytest --no-skips tests/unit tests/kernel tests/vm tests/flux_jobs tests/cluster

.PHONY: demo
demo: $(VENV)/.installed ## Trace a small program from the probe file to the report
	@[ "$$(id -u)" = 0 ] || { echo "the demo needs root" >&2; exit 1; }
	PATH="$(VENV)/bin:$$PATH" examples/demo.sh

.PHONY: bench
bench: setup bench-packages $(VENV)/bench/dftracer $(VENV)/dfanalyzer/.installed ## Measure what tracing and reports cost, next to other tools (5 minutes)
	$(run) tests/bench/run.py

.PHONY: bench-large
bench-large: setup bench-packages $(VENV)/bench/dftracer $(VENV)/dfanalyzer/.installed ## The same, with traces of 100 M events (15 minutes)
	$(run) tests/bench/run.py --large

.PHONY: bench-long
bench-long: setup bench-packages $(VENV)/bench/dftracer $(VENV)/dfanalyzer/.installed ## The same, watching the daemon's memory for 10 minutes
	$(run) tests/bench/run.py --minutes 10

# to measure beside, no part of datacrumbs; without it its row is empty
$(VENV)/bench/dftracer: | $(VENV)/.dependencies
	@$(run) -m pip install --quiet --no-deps --only-binary :all: --target $@.new dftracer==2.2.0 \
	  && mv $@.new $@ || echo "DFTracer cannot be fetched: measuring without it" >&2

.PHONY: wheel
wheel: $(VENV)/.installed ## Build a wheel into dist/
	$(run) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## Remove what was built, caches and the environment
	rm -rf build dist .mesonpy-* .mypy_cache .ruff_cache .pytest_cache .hypothesis $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
