# make demo: everything from a fresh machine with Python 3.12 to masks and a report
# make test: lint, types, import contracts, tests; make test-slow: the long sweeps
# make check: lint, types, contracts only; make bench: ratios against floors

PYTHON ?= $(shell command -v python3.12 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
DONE = $(VENV)/.installed-$(EXTRAS)
EXTRAS ?= dev
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test test-slow check bench clean

setup: $(DONE)

$(DONE): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	  { echo "Python 3.12 or newer is needed; make PYTHON=/path/to/python3.12"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: $(DONE)
	$(BIN)/wsi demo demo

check: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: $(DONE)
	$(BIN)/python -m pytest -m slow

bench: $(DONE)
	$(BIN)/python tests/benchmarks/tile_memory.py
	$(BIN)/python tests/benchmarks/pipeline_time.py

clean:
	rm -rf $(VENV) demo
