# Every target sets up .venv first; a fresh machine needs Python 3.11 and make, no more.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2

.PHONY: help demo test test-newest check docs pictures bench-smoke setup clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## make .venv with the tested versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## synthetic images, store, heads, ensemble, report: under 3 minutes
	$(BIN)/zoo demo -o demo

check: $(READY)  ## format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check  ## everything that CI checks
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile

test-newest:  ## the store with a newer Python, the newest zarr, pandas 2.3
	JOBS=$(JOBS) .ci/test-newest

docs: $(READY)  ## the documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: $(READY)  ## the pictures of README and site, from the demonstration; needs Chromium
	$(BIN)/python docs/figures/make.py

bench-smoke: $(READY)  ## small benchmarks; report in benchmarks/out
	$(BIN)/python -m benchmarks --smoke --out benchmarks/out

clean:  ## remove .venv and what the targets made
	rm -rf $(VENV) demo site benchmarks/out
