# make demo: everything from a fresh machine with Python 3.12 to masks and a report
# make test: lint, types, import contracts, tests; make test-slow: the long sweeps
# make faults: kills, full disks, hostile files and the other injected faults, about an
#   hour; writes docs/promises.md
# make audit: known advisories of the pinned packages, asked of PyPI (network);
#   make sbom: what is installed, as CycloneDX in out/sbom.json (no network)
# make check: lint, types, contracts only; make bench: ratios against floors
# make bench-segment: trains and measures the arms of learned downsampling, goes on
#   where it stopped; MINUTES=60 starts none later; DATASET=cityscapes DATA=FOLDER
#   measures whole images of one of the table of datasets under its usual budgets
# make bench-study: the published motivational study: densities made from the truth,
#   from nearly even to dense at boundaries, and the best of them for each class
# make bench-tile: the tiler against its floors and other converters, 15 minutes
# make bench-export: a mask to GeoJSON against rasterio and what people combine, minutes
# make bench-select: patches from Zarr through the encoder, against the encoder alone
# make bench-screen: recall and work of a screen, trained here, on painted slides; goes
#   on where it stopped
# make bench-labels: a selector from slide-level labels of painted slides, hours; goes
#   on where it stopped
# make bench-stitch: stitching predictions of 64 MP against writing the labels once

PYTHON ?= $(shell command -v python3.12 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
PEERS = .venv-peers
CRATES = .venv-crates
AUDIT = .venv-audit
DONE = $(VENV)/.installed-$(EXTRAS)
EXTRAS ?= dev
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test test-slow faults audit sbom check bench bench-segment bench-study \
  bench-tile bench-export bench-stitch bench-select bench-screen bench-labels clean

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not faults" -n 2

test-slow: $(DONE)
	$(BIN)/python -m pytest -m slow

# the validator of RO-Crates lives apart: it needs an older rich than the rest
$(CRATES)/.installed:
	"$(PYTHON)" -m venv $(CRATES)
	$(CRATES)/bin/python -m pip install --quiet roc-validator==0.13.0
	$(CRATES)/bin/python -m pip install --quiet --no-deps rocrate==0.13.0
	touch $@

# atheris has no wheels for some machines; its tests say so and are skipped there
faults: $(DONE) $(CRATES)/.installed
	-$(BIN)/python -m pip install --quiet atheris==3.1.0
	mkdir -p out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "faults or promise" \
	  --junitxml=out/faults.xml; code=$$?; \
	  $(BIN)/python -m tests.faults.table out/faults.xml docs/promises.md; exit $$code

# what looks at the packages lives apart, so that it is not among them
$(AUDIT)/.installed:
	"$(PYTHON)" -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0 || \
	  { echo "no network: nothing was looked at"; exit 1; }
	touch $@

# strict: without network it would skip every package and find nothing wrong
audit: $(AUDIT)/.installed
	$(AUDIT)/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip \
	  -r constraints.txt

sbom: $(DONE) $(AUDIT)/.installed
	mkdir -p out
	$(AUDIT)/bin/cyclonedx-py environment --output-reproducible \
	  --pyproject pyproject.toml -o out/sbom.json $(BIN)/python

bench: $(DONE)
	$(BIN)/python tests/benchmarks/tile_memory.py
	$(BIN)/python tests/benchmarks/pipeline_time.py
	$(BIN)/python tests/benchmarks/openslide_speed.py

bench-segment: $(DONE)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/segment_table.py \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(DEVICE),--device $(DEVICE) --jobs 1) \
	  $(if $(DATASET),--dataset $(DATASET) --data $(DATA))

# peers live apart, so that their dependencies cannot disturb ours
$(PEERS)/.installed:
	"$(PYTHON)" -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet pyvips==3.2.0 pyvips-binary==8.18.7 \
	  ngff-zarr==0.50.0 tifffile imagecodecs 'dask[distributed]'
	touch $@

bench-study: $(DONE)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/segment_table.py \
	  --only '^glas .*(uniform|oracle,floor)' \
	  $(if $(DEVICE),--device $(DEVICE) --jobs 1)

bench-tile: $(DONE) $(PEERS)/.installed
	$(BIN)/python tests/benchmarks/tile_speed.py

bench-export: $(DONE)
	$(BIN)/python tests/benchmarks/export_speed.py $(if $(TIMES),--times $(TIMES))

bench-stitch: $(DONE)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/stitch_speed.py

bench-select: $(DONE)
	$(BIN)/python tests/benchmarks/select_speed.py

bench-screen: $(DONE)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/screen_recall.py out/screen

bench-labels: $(DONE)
	$(BIN)/python tests/benchmarks/select_labels.py out/labels

clean:
	rm -rf $(VENV) $(PEERS) $(CRATES) $(AUDIT) demo
