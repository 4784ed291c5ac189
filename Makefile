# `make demo` and `make test` are the two to know; both install into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test install lint bench fuzz clean

demo: install
	rm -rf runs/demo
	$(BIN)/trainer --recipe recipes/demo.yaml --out runs/demo

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

install: $(STAMP)

$(STAMP): requirements.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(STAMP)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python tests/benchmarks/step_overhead.py
	$(BIN)/python tests/benchmarks/sizes.py

fuzz: install
	$(BIN)/python -m plugins.huffman.tests.fuzz

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
