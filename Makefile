# Every target sets up what it needs first; `make help` lists them.
.DEFAULT_GOAL := help

# The interpreter for .venv: any of Python 3.10 to 3.13. Empty: the first that is found.
PYTHON ?=
# Which versions: empty for today's, in .venv; "floor" for the oldest, in .venv-floor (Python 3.10
# to 3.12). docs/versions.md compares them.
SET ?=
# Passed on to pytest: make test ARGS="-k routing -x"
ARGS ?=

VENV := .venv$(addprefix -,$(SET))
RUN := $(VENV)/bin/python -m

.PHONY: help setup quickstart test test-versions stress check docs format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A prerequisite of what needs it, so that one make runs it once, with -j too.
setup: ## make .venv from requirements.lock (at once when it is up to date; SET=floor: .venv-floor)
	@PYTHON="$(PYTHON)" SET="$(SET)" scripts/setup.sh

quickstart: setup ## train a tiny ITT and the dense model on a CPU and compare them
	@$(VENV)/bin/itt quickstart

# Models of the tests are so small that a second thread costs more than it does.
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

# A process per core, a file of tests at a time; Spark's tests want to be first.
WORKERS := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup ## run the tests (ARGS="-k name" goes to pytest; ARGS="-n 0" takes one process)
	@HF_HUB_OFFLINE=1 $(THREADS) $(RUN) pytest $(WORKERS) $(ARGS)

test-versions: setup ## run the model's tests under releases of transformers from 4.57 to 5.24 (10 minutes)
	@scripts/test_versions.sh

# How often of each kind: conversions with and without budgets, training on one and two ranks;
# SEED=… repeats a failure.
KILLS ?= 150

stress: setup ## kill conversions and training at random moments, hundreds of times (about 5 s each)
	@KILLS=$(KILLS) HF_HUB_OFFLINE=1 $(THREADS) $(RUN) pytest -s \
		tests/data_prep/test_kills.py tests/training/test_training_kills.py $(ARGS)

check: docs ## lint, formatting, types and the pages of docs/
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

# The variable silences a note of the theme's authors on other programs.
docs: setup ## build docs/ into site/ (broken links, missing pages and pages outside of the navigation fail)
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

format: setup ## format the code and fix what the linter can
	$(RUN) ruff check --fix
	$(RUN) ruff format

# Not after `setup`: the lock that is being replaced may be one that cannot be installed. uv reads
# the overrides of pyproject.toml only in this folder, so the floor is resolved from elsewhere.
COMPILE = $(CURDIR)/.venv/bin/uv pip compile $(CURDIR)/pyproject.toml --universal --extra dev \
	--no-python-downloads --generate-hashes --no-emit-index-url --no-annotate --quiet \
	--custom-compile-command "make lock" $(ARGS)

lock: ## resolve pyproject.toml into both locks (ARGS=--upgrade for newer versions)
	@[ -x .venv/bin/uv ] || PYTHON="$(PYTHON)" scripts/setup.sh
	$(COMPILE) --python-version 3.11 -o requirements.lock
	cd / && $(COMPILE) --python-version 3.10 -o $(CURDIR)/requirements.floor.lock

clean: ## remove .venv, .venv-floor and every cache (runs/ stays)
	rm -rf .venv .venv-floor .versions .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
