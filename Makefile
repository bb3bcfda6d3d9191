# One command for each thing. `make demo` and `make test` need a Debian machine and root, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory
.NOTPARALLEL:

BIN := .venv/bin
export PATH := $(PATH):/usr/sbin:/sbin
export MAKECMDGOALS

# where `make install` puts things
PREFIX ?= /opt/meshd
export PREFIX

.PHONY: help setup demo test test-real check format bench soak deb install clean

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup:  ## install what is missing: Debian packages, .venv with meshd and meshctl
	@.ci/setup

demo: setup  ## three hosts on this machine, told step by step
	@$(BIN)/python -m meshctl.demo

test: setup  ## every test, with one line of summary
	@$(BIN)/python -m pytest -q -p no:cacheprovider -n 3 --dist loadfile $(ARGS)

test-real: setup  ## Docker, containerd, podman and booted systemd, at length
	@MESHD_REAL=1 $(BIN)/python -m pytest -q -p no:cacheprovider tests/real $(ARGS)

check: setup  ## format, lint, types, import rules
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: setup  ## let ruff write the format and the fixes it is sure of
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup  ## figures, measured on this machine
	@shopt -s nullglob; for script in tests/bench/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

soak: setup  ## long simulations, many more generated examples, daemons killed at random
	@MESHD_SOAK=1 $(BIN)/python -m pytest -q -p no:cacheprovider tests/sim tests/unit tests/lab/test_lab_healing.py tests/lab/test_lab_bridge.py tests/lab/test_lab_crash.py tests/lab/test_lab_monkey.py tests/lab/test_lab_soak.py $(ARGS)

deb:  ## build dist/meshd_VERSION_ARCH.deb, which installs without a network
	@systemd/deb/build

install:  ## install on this host: PREFIX, the unit and its user, sysctl and module settings
	@systemd/install

clean:  ## remove what the targets above made here
	@rm -rf .venv .hypothesis .mypy_cache .ruff_cache .import_linter_cache .pytest_cache dist build
