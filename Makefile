# Two commands are all: `make quickstart` and `make test`. Both set up what they need first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup quickstart test lint types tests newer ui clean

help: ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## a virtual environment from the lock file

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (make PYTHON=python3.11 …)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev,postgres,s3]'
	@touch $@

quickstart: setup ## run the whole graph on the embedded model and data
	$(BIN)/align run recipes/quickstart.yaml

test: setup lint types newer tests ## everything that has to hold

lint: setup ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy, strict everywhere but in tests
	$(BIN)/mypy

tests: setup ## pytest, a file at a time on each core, four at most
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

newer: setup ## every file compiled, and the pure core tested, on a newer Python where there is one (PYTHON_NEXT=…)
	$(BIN)/python -m tests.newer_python

ui: setup ## Dagster with its daemon, and MLflow, on this project's home
	$(BIN)/python -m alignment_dags.ui

clean: ## forget everything that was made (not the environment)
	rm -rf .align .dagster
