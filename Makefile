# Everything runs in a virtual environment of its own; `make clean` removes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check pytest format clean

help:  ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/demo.stamp  ## Export a small model and classify the pictures that come with the project
	$(BIN)/sacvit-deploy demo

test: check pytest  ## Run every check: lint, format, types, layers, tests

check: $(VENV)/test.stamp  ## Run the checks that do not run the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: $(VENV)/test.stamp  ## Run the tests; choose some with ARGS='-m "not slow"'
	$(BIN)/python -m pytest $(ARGS)

format: $(VENV)/test.stamp  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## Remove the environment, caches and what the demo wrote
	rm -rf $(VENV) build dist demo-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find sacvit_deploy tests -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/demo.stamp: EXTRAS := export
$(VENV)/test.stamp: EXTRAS := dev,export
$(VENV)/%.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
