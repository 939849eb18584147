# What a developer types. Needs python3 (3.11 or newer) and make; everything else is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
DEV := $(VENV)/.dev-installed
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help check lint test test-slow format demo clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

check: lint test  ## all that must pass before a commit

lint: $(DEV)  ## format, lint, import contracts, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: $(DEV)  ## the default tests: minutes
	$(PYTEST)

test-slow: $(DEV)  ## only the slow tests
	$(PYTEST) -m slow

format: $(DEV)  ## format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: | $(BIN)/unbackdoor  ## a real backdoored network and real images, before and after: some minutes, and a report page
	$(BIN)/unbackdoor demo

clean:  ## remove what tools left behind; $(VENV) stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The one environment: `demo` is content with the package itself, everything else wants the tools as well.

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(BIN)/unbackdoor: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	sys.exit(None if v >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
