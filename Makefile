# `make demo` and `make test` are the two to know; both install into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO := $(BIN)/trainer --recipe recipes/demo.yaml --out runs/demo

# What a command says goes to a file, and is shown where the command fails.
kept_in = >$(1) 2>&1 || { cat $(1) >&2; exit 1; }

.PHONY: demo test install lint bench fuzz clean

demo: install
	@rm -rf runs/demo && mkdir -p runs
	@echo "training: $(DEMO)  # 10 s, half a minute the first time"
	@$(DEMO) $(call kept_in,runs/demo.log)
	@grep -v '^epoch ' runs/demo.log

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

install: $(STAMP)

$(STAMP): requirements.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@test -x $(BIN)/python || { echo "environment: $(VENV), made by $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "packages: requirements.txt, some 5 GB with torch, into $(VENV) ($(LOG))"
	@{ $(PIP) --upgrade pip && $(PIP) -r requirements.txt; } $(call kept_in,$(LOG))
	@touch $(STAMP)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python tests/benchmarks/step_overhead.py
	$(BIN)/python tests/benchmarks/sizes.py

fuzz: SECONDS ?= 600
fuzz: SEED ?= 0
fuzz: install
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
