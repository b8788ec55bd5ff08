# Each target sets up what it needs, into .venv/. On Linux a plain `torch` brings CUDA; for the CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format bench notebooks docs dist clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zanalysis needs Python 3.11 or newer; make PYTHON=python3.12 picks another")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# Frameworks that only the slow tests train with.
$(STAMP)-integrations: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,integrations]'
	@touch $@

setup: $(STAMP)  ## make .venv/ with everything in it

demo: $(STAMP)  ## train the networks of Figure 3, and judge Theorem 1
	$(BIN)/zanalysis verify theorem1 --overwrite

# One process for each core, with one thread each: numerics in many threads would wait for one another.
test: $(STAMP)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

test-slow: $(STAMP)-integrations  ## run the slow tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m 'slow and not cuda'

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure speed, as ratios side by side
	$(BIN)/python -m benchmarks

# From the committed results, and run files that are made first; what has finished before is used again.
EXPERIMENT := $(BIN)/zanalysis experiment
notebooks: $(STAMP)  ## execute the notebooks, on run files that are trained first
	test -d runs/theorem1 || $(MAKE) demo
	export OMP_NUM_THREADS=1; \
	$(EXPERIMENT) figure-6 --scale small --only zero --quiet > /dev/null & one=$$!; \
	$(EXPERIMENT) figure-6 --scale small --only kaiming --quiet > /dev/null && wait $$one
	$(EXPERIMENT) figure-6 --scale small
	$(EXPERIMENT) zero-weights/cnn-mnist --scale small --seeds 1
	$(EXPERIMENT) zero-weights/mixer-all-constant --scale small --only all-constant
	$(BIN)/python notebooks/execute.py

docs: $(STAMP)  ## build the site into docs/_build/html, warnings as errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

dist: $(STAMP)  ## build a wheel and a source archive into dist/
	rm -rf build dist *.egg-info
	$(BIN)/python -m build

clean:  ## remove what the targets made
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis docs/_build
