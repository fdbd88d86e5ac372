# DataCrumbs: what a developer and CI need. `make help` lists the targets.
#
# PYTHON  the interpreter the environment is made from: the system's own, because that one sees
#         the distribution's BCC bindings, wherever `python3` on PATH leads
# VENV    the environment: below the checkout if ordinary users can reach it there (tests run
#         commands as such users), else a directory of /var/tmp

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

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

# Debian's names. Building: clang, bpftool, headers of libbpf, libc and Slurm, gcc, python3-venv.
# Running: libbpf1. The rest is what tests run, trace or check with.
PACKAGES := acl clang llvm bpftool libbpf-dev libbpf1 gcc g++ libc6-dev libslurm-dev python3 \
	chromium chromium-driver fonts-dejavu-core \
	python3-venv python3-bpfcc linux-headers-$(shell dpkg --print-architecture) \
	libhdf5-openmpi-dev libopenmpi-dev liburing-dev openmpi-bin \
	debootstrap e2fsprogs fio fuse2fs gcc-aarch64-linux-gnu git groff-base iproute2 \
	libc6-dev-arm64-cross libcap2-bin libseccomp2 \
	musl-tools openssh-client openssh-server patchelf sqlite3 strace systemd systemtap-sdt-dev \
	tar time util-linux busybox-static cpio kmod qemu-system-arm qemu-system-x86 \
	xfsprogs xz-utils zstd
BENCH_PACKAGES := bpftrace linux-perf

export PIP_ROOT_USER_ACTION := ignore
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# the tests are of what is installed, not of what lies here
unexport PYTHONPATH
run := PATH="$(VENV)/bin:$$PATH" $(VENV)/bin/python -P

sources := pyproject.toml README.md Makefile $(shell find meson.build bpf datacrumbs docs etc \
	examples scheduler systemd -not -name __pycache__ -not -name '*.pyc' 2>/dev/null)

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: setup
setup: packages $(VENV)/.installed ## Install system packages, the environment and datacrumbs into it

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

.PHONY: bench-packages
bench-packages:
	$(call install,$(BENCH_PACKAGES))

$(VENV)/bin/python: | packages
	mkdir -p $(dir $(VENV))
	@[ -O $(dir $(VENV)) ] || { echo "$(dir $(VENV)) belongs to somebody else" >&2; exit 1; }
	$(PYTHON) -m venv --system-site-packages $(VENV)

# what pyproject.toml asks for: to build, to run, to develop
$(VENV)/.dependencies: pyproject.toml | $(VENV)/bin/python
	$(run) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	  d = p["project"]; print(*p["build-system"]["requires"], *d["dependencies"], \
	  *d["optional-dependencies"]["dev"], sep="\n")' > $@.txt
	$(run) -m pip install --quiet -r $@.txt
	touch $@

# a wheel, not an editable install: what the tests see is what a site gets
$(VENV)/.installed: $(sources) | $(VENV)/.dependencies
	$(run) -m pip install --quiet --no-build-isolation --no-deps \
	  --config-settings=setup-args=-Dwerror=true .
	touch $@

# DFTracer's own tools, which tests let read our exports; not beside ours, whose versions they fix
$(VENV)/dfanalyzer/.installed: | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/dfanalyzer
	$(VENV)/dfanalyzer/bin/python -P -m pip install --quiet \
	  dftracer-analyzer==0.0.9 dftracer-utils==0.0.12
	touch $@

.PHONY: lint
lint: setup ## Check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# of the nodes of the cluster that tests start; kept in /var/cache/datacrumbs-tests
.PHONY: images
images: setup
	@[ "$$(id -u)" = 0 ] || { echo "the tests need root" >&2; exit 1; }
	$(run) tests/cluster/image.py

.PHONY: test
test: lint images $(VENV)/dfanalyzer/.installed ## All tests that this machine can run (root, BPF); a skipped test is a failure
	$(run) -m pytest --no-skips tests/unit tests/kernel tests/vm tests/flux_jobs tests/cluster

.PHONY: demo
demo: setup ## Trace a small program from the probe file to the report
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
wheel: setup ## Build a wheel into dist/
	$(run) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## Remove what was built, caches and the environment
	rm -rf build dist .mesonpy-* .mypy_cache .ruff_cache .pytest_cache .hypothesis $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
