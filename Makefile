# Every target works on a fresh machine with make and Python 3.11 or newer; it installs what it needs into .venv.
SHELL := /bin/sh
USABLE = -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do if $$p $(USABLE); then echo $$p; break; fi; done)
find_python = $(shell for p in python$(1) $$HOME/.pyenv/versions/$(1).*/bin/python; do if $$p $(USABLE); then echo $$p; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile  # Python compiles what it imports
PYTEST_FLAGS ?= -n 2 --dist worksteal
# The tests mostly compile, and XLA compiles 13 % faster with the allocator that comes with Ray for Linux.
PYTEST = LD_PRELOAD=$$(ls $(CURDIR)/$(VENV)/lib/python3.*/site-packages/ray/core/libjemalloc.so 2>/dev/null) $(BIN)/pytest
export PYTHONDONTWRITEBYTECODE :=  # else each process of the tests compiles all modules: 3 s

.PHONY: help train test validate lint format tables docs bench test-matrix clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

train: $(VENV)/.installed  ## Train IQN on CartPole-v1
	$(BIN)/quantilax train configs/gymnax/cartpole.yaml iqn

test: $(VENV)/.installed-test  ## Run the test suite, except for its long tests
	$(PYTEST) $(PYTEST_FLAGS)

validate: $(VENV)/.installed-test  ## Run the long tests and repeat parts of docs/benchmarks.md (one MinAtar section a day), the comparisons with tianshou and stable-baselines3 and docs/diagnosis.md: an hour or more on two cores
	$(PYTEST) $(PYTEST_FLAGS) -m validation
	$(BIN)/pytest -p no:xdist -rA tests/validate_sections.py
	$(BIN)/python -m benchmarks.conformance
	$(BIN)/python -m benchmarks.conformance_actors
	$(BIN)/pytest -p no:xdist -m "" tests/contracts/test_conformance.py tests/contracts/test_conformance_actors.py
	rm -rf runs/validate
	$(BIN)/python investigations/0003-diagnosis/run.py --out runs/validate --first-seed 100 --seeds 10
	$(BIN)/python investigations/0003-diagnosis/fit.py --data runs/validate --keep-ranges --out runs/validate/results.csv --require

lint: $(VENV)/.installed-test  ## Check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(VENV)/.installed-test  ## Update the tables of docs/algorithms and docs/benchmarks.md
	$(BIN)/python tools/tables.py

docs: $(VENV)/.installed-docs  ## Build the documentation into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-test  ## Compare speed with rejax, each in its own environment
	$(BIN)/python -m benchmarks.throughput --against rejax

test-matrix:  ## Run the tests on the oldest and newest supported Python and JAX
	$(MAKE) test-one NAME=oldest FOUND="$(call find_python,3.11)" CONSTRAINT=constraints/oldest.txt
	$(MAKE) test-one NAME=newest FOUND="$(or $(call find_python,3.13),$(call find_python,3.12))"

test-one:
	@test -n "$(FOUND)" || { echo "error: no Python for the $(NAME) environment found; install Python 3.11 and 3.12 or 3.13"; exit 2; }
	$(FOUND) -m venv --clear .venv-$(NAME)
	.venv-$(NAME)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINT),-c $(CONSTRAINT)) -e '.[test]'
	.venv-$(NAME)/bin/python -m pip list | grep -i -E '^(jax|jaxlib|flax|optax|gymnax|numpy) '
	.venv-$(NAME)/bin/python -m pytest $(PYTEST_FLAGS)

clean:  ## Remove environments and caches, keep runs
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache site

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv found; install one (Debian: apt install python3 python3-venv)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	$(INSTALL) -e '.[test,lint]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml
	$(INSTALL) -e '.[docs]'
	@touch $@
