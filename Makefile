# Front door of the project: `make` alone lists what there is.
# Needs GNU make, Python 3.11 with pip, and a package index that pip can reach.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin

# The state of all deployments. Each has its own folder below it, with its own DAGSTER_HOME, since
# assets have the same keys in all of them. Choose one with make dev AD_PIPELINE_DATASET=...
demo dev: export AD_PIPELINE_HOME ?= $(CURDIR)/.ad_pipeline
# Another project's Dagster instance must not be touched, even if the shell names one.
unexport DAGSTER_HOME

# Nothing is reported to anyone: Dagster, Evidently, pyright's look for a newer version.
export DAGSTER_DISABLE_TELEMETRY      := 1
export DO_NOT_TRACK                   := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK  := 1
# Waiting OpenMP threads sleep: spinning ones slow each other down on a small machine.
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

# A worker a core; tests that share what is dear to make stay together (ad_pipeline_tests/conftest.py).
WORKERS := --numprocesses logical --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test test-all bench evidence lint format lock

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Two marks, so that the demo does not wait for test tools. They are older than the lock or
# pyproject.toml exactly when something is to be installed. --no-deps: a lock is complete, and
# pip 23.2 in hash mode refuses pins that another package asks for with an extra.
RUNTIME := $(VENV)/.runtime
DEV     := $(VENV)/.dev

define install
	@echo "Installing requirements/$(1).lock into $(VENV) (one to two minutes the first time)"
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/$(1).lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)

$(RUNTIME): requirements/runtime.lock pyproject.toml | $(BIN)/python
	$(call install,runtime)
	@touch $@

$(DEV): requirements/dev.lock pyproject.toml | $(BIN)/python
	$(call install,dev)
	@touch $(RUNTIME) $@

setup: $(DEV) ## Make .venv with everything, pinned by hash (the other targets do it when needed)

demo: $(RUNTIME) ## Run the main job on both datasets and print the result
	@$(BIN)/ad_pipeline demo

dev: $(RUNTIME) ## Start the Dagster UI and daemon: http://localhost:3000
	@home=$$($(BIN)/python -c 'from ad_pipeline.datasets import deployment_from_env as d; print(d().home)') \
	&& export DAGSTER_HOME="$$home/dagster_home" PATH="$(CURDIR)/$(BIN):$$PATH" \
	&& mkdir -p "$$DAGSTER_HOME" \
	&& cp ad_pipeline/defs/dagster.yaml "$$DAGSTER_HOME" \
	&& exec dg dev

test: $(DEV) ## Run the tests, without the slow ones
	@$(BIN)/python -m pytest -m "not slow" $(WORKERS)

test-all: $(DEV) ## Run all tests: kills, many seeds, the daemon
	@$(BIN)/python -m pytest $(WORKERS)

bench: $(DEV) ## Measure speed: every module of benchmarks/speed, into docs/performance.md
	@$(BIN)/python -m benchmarks.performance_page

evidence: $(DEV) ## Run the studies that have no result yet, draw docs/evidence.md (ONLY=, SEEDS=, FRESH=1)
	@$(BIN)/python -m benchmarks.evidence $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FRESH),--fresh)

lint: $(DEV) ## Check style, types and that the locks are current
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/python requirements/lock.py --check

format: $(DEV) ## Put all Python files into shape
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(DEV) ## Compile requirements/*.lock from pyproject.toml, keeping pins that still fit
	@$(BIN)/python requirements/lock.py
