# Every target sets itself up in .venv; a fresh machine needs python3 (3.11 or newer), make and git.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready

.PHONY: help setup tour test lint bench docs clean

help:            ## Show the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

setup: $(SETUP)  ## Make .venv with everything the project needs

$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, this is $$($(PYTHON) -V)"; echo "hint: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a minute or two)"
	@# torch first and alone: asked for with its own range, pip takes a CPU wheel where one is on offer.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch>=2.11,<2.14"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[tour,medical,edge,hub,serve,evaluate,oracle,dev]"
	@touch $@

tour: setup      ## Learn one small model of six senses from real files and use it (about 12 minutes on two cores)
	@$(BIN)/bedplate tour --to tour

test: setup      ## Run the test suite
	@$(BIN)/python -m pytest

lint: setup      ## ruff, mypy --strict, import layers
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: setup     ## Run the benchmarks and append their records (an hour or more; needs a quiet machine)
	@$(BIN)/python -m benchmarks.run_all

docs: setup      ## Regenerate the pages and tables that come from code and records
	@$(BIN)/python -m bedplate.cli.reference
	@$(BIN)/python -m benchmarks.tables

clean:           ## Remove what the tour and the tools made, not .venv
	@rm -rf tour runs corpus scratch .pytest_cache .mypy_cache .ruff_cache .hypothesis
