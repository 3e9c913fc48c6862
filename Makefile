# Every command of this project. `make run` and `make test` need only git, make and python3 (3.11+) with pip.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
# not that of .venv, which has no pip: its environment may be active
PYTHON ?= $(or $(shell PATH="$$(printf %s "$$PATH" | tr : '\n' | grep -vx '$(CURDIR)/$(BIN)' | paste -sd :)" \
	command -v python3),python3)
UV := .venv/uv/bin/uv
# a stamp's name is a hash: a changed lock or pyproject.toml installs again, an unchanged one costs nothing
UV_STAMP := .venv/uv/.installed-$(shell sha256sum < bootstrap.lock | cut -c1-16)
STAMP := .venv/.installed-$(shell cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
PROJECT := $(BIN)/python -m pipeline.project
export UV_SYSTEM_CERTS := 1
TESTS ?= tests
PORT ?= 5000
MODEL ?= folder-to-student
MINUTES ?= 60
SEED ?=
JOBS ?= 1

.PHONY: help setup plan run tries track ui live promote balance test test-all soak test-oldest docs check format lock

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) .dvc/plots/page.html  ## install everything into .venv from the lock; `handdown` is then there

$(UV_STAMP): bootstrap.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is %d.%d; this project needs 3.11 or newer: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(PYTHON) -m pip --version >/dev/null || { echo "$(PYTHON) has no pip: install python3-pip, or name a Python that has it: make PYTHON=..."; exit 1; }
	@rm -rf .venv/uv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-warn-script-location --require-hashes --target .venv/uv -r bootstrap.lock
	@touch $@

$(STAMP): requirements.lock pyproject.toml $(UV_STAMP)
	@rm -f .venv/.installed-*
	@$(BIN)/python -c '' 2>/dev/null || $(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	@touch $@

.dvc/plots/page.html: pipeline/project/plots_page.py $(STAMP)
	@rm -f $@
	@$(BIN)/python -m pipeline.project.plots_page

plan: setup  ## what `make run` would do, how long it would take, how much memory and disk it would need (JOBS=4)
	@$(PROJECT) plan --jobs "$(JOBS)"

run: setup  ## the whole graph on params.yaml, then the table of results (JOBS=4: so many runs at a time)
	@$(PROJECT) run --jobs "$(JOBS)"

tries: setup  ## what was tried with `dvc exp run`: the parameters that differ, accuracies and gains
	@$(PROJECT) tries

track: setup  ## write the rows that are missing in MLflow: after a server was down, or a database was lost
	@$(PROJECT) track

ui: setup  ## MLflow on this machine, open on this project's runs (PORT=5000)
	@exec $(PROJECT) ui --port $(PORT)

live: setup  ## beside `make ui`: the curves of what is training right now
	@exec $(PROJECT) live --port $(PORT)

promote: setup  ## register the best student; it becomes the champion if it beats it (MODEL=NAME)
	@$(PROJECT) promote --model "$(MODEL)"

balance: setup  ## suggest a term_weight for a run of params.yaml (RUN=at)
	@$(PROJECT) balance --name "$(RUN)"

test: setup  ## the tests
	$(IN_VENV) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" $(TESTS)

test-oldest: $(UV_STAMP)  ## the tests on the oldest versions that pyproject.toml allows, in .venv-oldest
	$(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv-oldest
	$(UV) pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --group dev \
		-r pyproject.toml
	$(UV) pip install --quiet --python .venv-oldest/bin/python --offline --no-deps --no-build-isolation --editable .
	.venv-oldest/bin/python -m pipeline.project.plots_page
	PATH="$(CURDIR)/.venv-oldest/bin:$$PATH" OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile \
		--no-loadscope-reorder -m "not slow and not gpu" $(TESTS)

docs: setup  ## write docs/methods.md from the docstrings and settings of the methods
	$(BIN)/python -m experiments.method_docs --write docs/methods.md

soak: setup  ## generated cases: kills, full disks, changed files, hostile requests (MINUTES=60 SEED=...)
	$(IN_VENV) OMP_NUM_THREADS=1 python tests/soak.py --minutes $(MINUTES) --seed "$(SEED)"

test-all: setup  ## the tests, the slow ones too
	$(IN_VENV) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

check: setup  ## format, lint and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## put the code into the form that `make check` wants
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(UV_STAMP)  ## resolve the ranges of pyproject.toml anew into the lock files
	echo 'uv>=0.9' | UV_CUSTOM_COMPILE_COMMAND="make lock" $(UV) pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links - -o bootstrap.lock
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(UV) pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --group dev pyproject.toml -o requirements.lock
