# make demo     from nothing to a trained and measured model, in a few minutes
# make test     every test          make check    lint, format and types
# make install  .venv with clipkit, every extra and the test tools

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NUM_WORKERS ?= 2
# The first Python that is new enough and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
done)

.PHONY: help install demo test check clean

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

install: $(INSTALLED)

$(BIN)/python:
	@test -n "$(PYTHON)" || { printf 'error: there is no Python of 3.11 or newer that can make a virtual environment\n\n' >&2; \
		printf 'hint: on Debian or Ubuntu `apt install python3-venv`; or name one, `make PYTHON=…`\n' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	@touch $@

demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/clipkit sample shapes demo/shapes
	$(BIN)/clipkit ingest demo/shapes demo/shapes.lance
	$(BIN)/clipkit train --config configs/shapes.yaml --set data.dataset=demo/shapes.lance --set run.dir=demo/run
	$(BIN)/clipkit eval demo/run demo/shapes.lance --split test --picture demo/found.png

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(NUM_WORKERS) $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo
