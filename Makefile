# `make` prints what there is. Everything runs in .venv, which is made on first use and again when
# pyproject.toml or constraints.txt change.

# The first of these that runs and is new enough; or say so: make PYTHON=/opt/python3.12/bin/python3 test
PYTHON ?= $(firstword $(foreach p,python3.11 python3 python3.12 python3.13,\
	$(shell $(p) -c 'import sys; print("$(p)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
# The first of these that answers; a docker command without its daemon does not.
DOCKER ?= $(firstword $(foreach d,docker podman,$(shell $(d) info >/dev/null 2>&1 && echo $(d))))
# cpu, or the CUDA of PyTorch's builds: cu126, cu130, ... An image for GPUs says so in its tag.
ACCELERATOR ?= cpu
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' cyto_dl/__init__.py)
IMAGE   ?= cyto-dl:$(VERSION)$(patsubst %,-%,$(filter-out cpu,$(ACCELERATOR)))
BIN     := .venv/bin

# One thread per test process: two processes share the machine instead of fighting for it.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-integration test-image check format compile image clean

help:  ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-18s %s\n", $$1, $$2}'

demo: .venv/installed  ## Real images -> training -> report and bundle -> server -> a prediction over HTTP (three to four minutes)
	$(BIN)/python examples/nuclei/demo.py

test: .venv/installed  ## Run the tests that need no server, browser or container
	$(PYTEST) -n 2 --ignore=tests/integration --ignore=tests/image

test-integration: .venv/installed  ## Run the tests against real servers (.ci/run installs what they need)
	$(PYTEST) tests/integration

check: .venv/installed  ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: .venv/installed  ## Compile the pipelines into the YAML that Kubeflow takes
	$(BIN)/python -m pipelines compile --all --output pipelines/compiled

image:  ## Build the container image of the pipeline steps and the server (ACCELERATOR=cu130: for GPUs)
	@test -n "$(DOCKER)" || { echo "make image needs docker or podman: neither 'docker info' nor 'podman info' succeeds here"; exit 1; }
	$(DOCKER) build --tag $(IMAGE) --build-arg ACCELERATOR=$(ACCELERATOR) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown) $(BUILD_ARGS) .

test-image: .venv/installed image  ## Build the image, run the compiled training pipeline in it, and serve its bundle from it
	CYTO_DL_IMAGE=$(IMAGE) CYTO_DL_CONTAINER_ENGINE=$(DOCKER) $(PYTEST) tests/image

clean:  ## Remove .venv, the demo's results and every cache
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "CytoDL needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CytoDL needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	@touch $@
