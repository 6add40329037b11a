# Everything is installed into .venv, once; change pyproject.toml or constraints.txt and it is installed again.
#   make demo        teach, convert, distil and compare on the CPU, end to end (again: print what came of it)
#   make test        the tests;  make test-all: the slow ones too;  make test-oldest;  make lint types
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

# The oldest transformers that pyproject.toml takes, with the hub it wants, laid over the environment; and what has
# gone wrong on it unseen: what writes for a hybrid, and adapters, which follow its mixers and caches.
OLDEST := transformers==5.17.0 huggingface-hub==1.20.0
IN_OLDEST := tests/students/test_hybrid_lm_folder.py tests/students/test_same_writer.py \
	tests/ecosystems/test_gated_norms.py tests/peft/test_peft_hybrids.py tests/peft/test_peft_seed.py

BIN := $(VENV)/bin
# pip compiles what it installs on one core, a minute for torch and transformers; this is on all of them.
COMPILED = $(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true

.PHONY: help demo test test-all test-oldest lint format types docker clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed-demo
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/accelerate launch --quiet --config_file recipes/accelerate/cpu.yaml \
		scripts/demo.py $(if $(OVERWRITE),--overwrite)

test: $(VENV)/.installed-dev
	$(TESTING) $(BIN)/python -m pytest -n $(WORKERS) $(SHARES) -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev
	$(TESTING) $(BIN)/python -m pytest -n $(WORKERS) $(SHARES) $(PYTEST_ARGS)

test-oldest: $(VENV)/.installed-oldest
	PYTHONPATH=$(abspath $(VENV)/oldest) $(TESTING) $(BIN)/python -m pytest -n $(WORKERS) $(SHARES) \
		-m "not slow" $(IN_OLDEST)

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

$(VENV)/.installed-oldest: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/oldest $(OLDEST)
	@touch $@
