# Two commands do everything on a fresh machine: `make run` and `make test`.
# PYTHON picks the interpreter (3.11 to 3.13). PIP_ARGS goes to pip, for example
#   make run PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# for the small CPU build of torch where the package index would give the CUDA one.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=
BIN = $(VENV)/bin
MODEL ?= smollm2-135m
PROMPT ?= Why is the sky blue? Answer in two sentences.
WORKERS ?= 2

.PHONY: help install run test test-all lint format bench clean

help:
	@echo "make run       an answer from a small real model, on the CPU (MODEL=, PROMPT=)"
	@echo "make test      all tests but the slow ones; make test-all: all"
	@echo "make lint      ruff and mypy; make format: ruff format"
	@echo "make bench     throughput and latency of the small model"
	@echo "make install   the environment in $(VENV), which the others use"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11, 3.12 or 3.13 is needed; none was found. Set PYTHON=/path/to/python3"; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: install
	@$(BIN)/octavo run $(MODEL) "$(PROMPT)"

# Tests must not open one pool of threads each: with two workers on two cores that only makes them wait.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/octavo bench throughput $(MODEL)
	$(BIN)/octavo bench latency $(MODEL)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
