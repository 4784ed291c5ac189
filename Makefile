# `make demo` and `make test` are the two to know. Every target but `help` and `clean` installs into .venv first.

.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DOCS_STAMP := $(VENV)/docs-installed
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
DEMO := $(BIN)/trainer --recipe recipes/demo.yaml --out runs/demo

# The output of a command goes to a file, and is shown if the command fails.
kept_in = >$(1) 2>&1 || { cat $(1) >&2; exit 1; }

.PHONY: help demo test test-fast install lint docs bench fuzz clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

demo: install  ## train a small network on digits and print a table of file sizes
	@rm -rf runs/demo && mkdir -p runs
	@echo "training: $(DEMO)  # 10 s, half a minute the first time"
	@$(DEMO) $(call kept_in,runs/demo.log)
	@grep -v '^epoch ' runs/demo.log

test: lint  ## the linter, the type checker and all tests
	$(PYTEST)

test-fast: install  ## the tests that take less than two minutes in all (not marked slow)
	$(PYTEST) -m "not slow"

install: $(STAMP)  ## make .venv and install the core, the plugins and the development tools into it

$(STAMP): requirements.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@test -x $(BIN)/python || { echo "environment: $(VENV), made by $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "packages: requirements.txt, some 5 GB with torch, into $(VENV) ($(LOG))"
	@{ $(PIP) --upgrade pip && $(PIP) -r requirements.txt; } $(call kept_in,$(LOG))
	@touch $(STAMP)

lint: install  ## the linter, the formatter in check mode and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_STAMP)  ## build the documentation into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(DOCS_STAMP): $(STAMP)
	@$(PIP) -e '.[docs]' $(call kept_in,$(VENV)/docs-install.log)
	@touch $(DOCS_STAMP)

bench: install  ## the benchmarks of time per step and of file sizes
	$(BIN)/python tests/benchmarks/step_overhead.py
	$(BIN)/python tests/benchmarks/sizes.py

fuzz: SECONDS ?= 600
fuzz: SEED ?= 0
fuzz: install  ## all fuzzers, for SECONDS (600) from SEED (0)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

clean:  ## remove .venv, runs, build and the caches
	rm -rf $(VENV) runs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
