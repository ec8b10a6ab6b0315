# Everything is run through the environment that tools/setup.sh makes; the first target that needs it makes it.

PYTHON := .venv/bin/python
STAMP := .venv/stamp

# Two lanes, side by side, so that neither processor waits. One has the suites that only compute (the programs by
# test-run included) and then the fleets' and the proxy's; the other all that uses the kernel of one host, and any suite
# not named here.
# Within a lane one suite runs after the other, quick ones first.
computing := $(wildcard tests/unit tests/property tests/verdict tests/hostile tests/recipes tests/editor)
fleet := $(wildcard tests/proxy tests/svid tests/rego tests/wire tests/mesh)
ORDER := tests/kernel tests/systemd tests/e2e
host := $(wildcard $(ORDER)) \
	$(filter-out $(computing) $(fleet) $(ORDER) tests/lab tests/__pycache__,$(patsubst %/,%,$(wildcard tests/*/))) \
	$(wildcard tests/test_*.py)

# Agents and commands start by the hundred: their modules are compiled once.
unexport PYTHONDONTWRITEBYTECODE

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test lint types contracts pytest format bench run abi proto clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml tools/setup.sh tests/editor/package-lock.json
	tools/setup.sh

setup: ## install what is missing on this machine (root)
	tools/setup.sh

demo: $(STAMP) ## show an attack being stopped, on network namespaces of its own (root)
	$(PYTHON) demo/run.py

lab: $(STAMP) ## hosts and a router between them, to try things by hand; Ctrl-C takes all down (root)
	PYTHONPATH=agent:tests $(PYTHON) -m lab

test: lint types contracts pytest ## run every check and every test (root)

lint: $(STAMP) ## style
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) tools/genabi.py --check
	$(PYTHON) tools/genproto.py --check
	.venv/bin/bulkhead fmt --check policies

types: $(STAMP) ## static types
	$(PYTHON) -m mypy

contracts: $(STAMP) ## which room may import what
	PYTHONPATH=agent .venv/bin/lint-imports

pytest: lint types contracts
	$(MAKE) --no-print-directory --jobs=2 fleet host

.PHONY: computing fleet host
fleet: computing
# Only what the other lane leaves: that one measures latencies.
computing: PRIORITY := nice --adjustment=19
# Each line says which lane it is of.
computing fleet host: $(STAMP)
	$(PRIORITY) $(PYTHON) -m pytest --durations=15 -o cache_dir=.pytest_cache/$@ $($@) 2>&1 | sed --unbuffered 's/^/$@: /'

format: $(STAMP) ## rewrite the Python files in house style
	$(PYTHON) -m ruff format .

bench: $(STAMP) ## measure what a packet and a connection cost (root)
	$(PYTHON) bench/run.py

run: $(STAMP) ## start the agent on this very host, watching only: it drops nothing (root)
	.venv/bin/bulkhead loader
	.venv/bin/bulkhead agent --observe-only

abi: $(STAMP) ## generate agent/bulkhead/abi.py from bpf/abi.h
	$(PYTHON) tools/genabi.py

proto: $(STAMP) ## generate the descriptors of gRPC messages from the .proto files
	$(PYTHON) tools/genproto.py

clean: ## remove everything that can be made again
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .bulkhead_cache build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
