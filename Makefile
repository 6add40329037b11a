# Everything is installed into .venv, once; change pyproject.toml or constraints.txt and it is installed again.
#   make demo        teach, convert, distil and compare on the CPU, end to end (again: print what came of it)
#   make test        the tests;  make test-all: the slow ones too;  make lint types
# PYTHON=python3.12 chooses the interpreter, VENV=/elsewhere the environment, OVERWRITE=1 a demo from the start.

PYTHON ?= python3
VENV ?= .venv
# On cores with other work a second thread made the demo's small steps 2 to 5 times slower, waiting for the first.
THREADS ?= 1
# Test processes, of one thread each.
WORKERS ?= 2
# Whole files, so that what a file's tests share is made once; in their order, for the longest is one of few tests.
SHARES := --dist loadfile --no-loadscope-reorder
PYTEST_ARGS ?=
# Where Python is told to keep no compiled files, each process that a test starts compiles our own anew.
TESTING := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1

BIN := $(VENV)/bin
# pip compiles what it installs on one core, a minute for torch and transformers; this is on all of them.
COMPILED = $(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true

.PHONY: help demo test test-all lint format types docker clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed-demo
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/accelerate launch --quiet --config_file recipes/accelerate/cpu.yaml \
		scripts/demo.py $(if $(OVERWRITE),--overwrite)

test: $(VENV)/.installed-dev
	$(TESTING) $(BIN)/python -m pytest -n $(WORKERS) $(SHARES) -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev
	$(TESTING) $(BIN)/python -m pytest -n $(WORKERS) $(SHARES) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docker:
	docker build -f docker/Dockerfile -t transmamba .

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not installed; write make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "transmamba needs Python 3.11 or newer, but $$($(PYTHON) --version) is $(PYTHON); write make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing torch, timm, transformers, scikit-learn and what they need into $(VENV), once:"
	@echo "on Linux torch brings CUDA along, 6 GB on disk: two minutes on a fast line, in which pip says nothing"
	$(BIN)/python -m pip install --quiet --no-compile -e ".[data]" -c constraints.txt
	@$(COMPILED)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -e ".[dev]" -c constraints.txt
	@$(COMPILED)
	@touch $@
