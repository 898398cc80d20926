# Each target sets up what it needs, once, in a virtual environment in .venv created with PYTHON.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECKED := src tests benchmarks examples docs
# CPU-only PyTorch wheels, gigabytes smaller than those on PyPI
CPU_WHEELS ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage test-slow lint lowest docs format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gendd needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 2; }
	@echo "installing into $(VENV) …"
	@test "$$(uname)" = Linux && ! command -v nvidia-smi >/dev/null && ! test -e /dev/nvidiactl && \
	  $(PYTHON) -c 'import urllib.request as web; web.urlopen("$(CPU_WHEELS)/torch/", timeout=5)' 2>/dev/null && \
	  $(PIP) torch torchvision --index-url $(CPU_WHEELS) || true
	@$(PIP) torch torchvision 2>&1 | grep -v 'is ignored: it is neither' || true
	@$(PIP) --editable . 2>&1 | grep -v 'is ignored: it is neither' || true
	@$(BIN)/python -c 'import gendd, torch, torchvision'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable '.[dev]' 2>&1 | grep -v 'is ignored: it is neither' || true
	@$(BIN)/python -c 'import pytest, xdist, mypy, diffusers'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(PIP) --editable '.[docs]' 2>&1 | grep -v 'is ignored: it is neither' || true
	@$(BIN)/python -c 'import material, mkdocstrings'
	@touch $@

setup: $(VENV)/.installed  ## install gendd into .venv

demo: setup  ## distil a teacher with 200 labels and 6,000 bundled images, and write a report
	$(BIN)/gendd distill --out runs/demo --overwrite
	@echo "gendd is in $(BIN); to use it in this shell: source $(BIN)/activate"

TESTS := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev  ## run the tests
	$(BIN)/python $(TESTS)

coverage: $(VENV)/.installed-dev  ## run the tests with coverage, which takes twice as long
	$(BIN)/python $(TESTS) --cov --cov-report=term

test-slow: $(VENV)/.installed-dev  ## run every recipe's own networks for two steps (half an hour)
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev $(if $(CI),,.venv-lowest/.passed)  ## check style, types, imports and lower bounds (CI=1: skip the lower bounds)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

lowest: .venv-lowest/.passed  ## run the commands with every dependency at its lower bound (gigabytes, minutes)

.venv-lowest/.passed: pyproject.toml $(VENV)/.installed
	$(BIN)/python benchmarks/lower_bounds.py .venv-lowest
	@touch $@

docs: $(VENV)/.installed-docs  ## build the documentation in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(VENV)/.installed-dev  ## apply the code style
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

clean:  ## remove the environments and build outputs
	rm -rf $(VENV) .venv-lowest build dist .mypy_cache .ruff_cache .pytest_cache .coverage
