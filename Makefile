# make demo     installs clipkit into .venv, then trains and evaluates a model in a few minutes
# make install  adds every extra and the test tools to .venv
# make test     runs the tests          make check    runs the linter, formatter and type checker

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CORE := $(VENV)/.core
EVERYTHING := $(VENV)/.everything
NUM_WORKERS ?= 2
# The first Python that is new enough and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
done)

.PHONY: help install demo test check clean

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

install: $(EVERYTHING)

$(BIN)/python:
	@test -n "$(PYTHON)" || { printf 'error: no Python 3.11 or newer with `venv` was found\n\n' >&2; \
		printf 'hint: on Debian or Ubuntu `apt install python3-venv`, or name a Python: `make PYTHON=…`\n' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(EVERYTHING): pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[all]'
	@touch $(CORE) $@

demo: $(CORE)
	rm -rf demo
	$(BIN)/clipkit sample shapes demo/shapes
	$(BIN)/clipkit ingest demo/shapes demo/shapes.lance
	$(BIN)/clipkit train --config shapes --set data.dataset=demo/shapes.lance --set run.dir=demo/run
	$(BIN)/clipkit eval demo/run demo/shapes.lance --split test --picture demo/found.png

test: $(EVERYTHING)
	$(BIN)/python -m pytest -n $(NUM_WORKERS) $(ARGS)

check: $(EVERYTHING)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo
