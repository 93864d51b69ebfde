# Everything runs in a virtual environment of its own; `make clean` removes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check pytest fuzz format clean

help:  ## List the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/demo.stamp  ## Classify the sample pictures with the demo network
	$(BIN)/sacvit-deploy demo

test: check pytest  ## Run every check: lint, format, types, layers, tests

check: $(VENV)/test.stamp  ## Run the static checks: lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: $(VENV)/test.stamp  ## Run the tests, a process for each core; choose some with ARGS='-m "not slow"'
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: $(VENV)/test.stamp  ## Try hostile inputs until stopped or a failure; one round with EXAMPLES=10000 (SEED=1, ARGS)
	while :; do \
		FUZZ_EXAMPLES=$(or $(EXAMPLES),1000) $(BIN)/python -m pytest -n auto tests/fuzz \
			$(if $(SEED),--hypothesis-seed=$(SEED)) $(ARGS) || exit 1; \
		if [ -n "$(EXAMPLES)" ]; then exit; fi; \
	done

format: $(VENV)/test.stamp  ## Format the code, and apply the fixes of ruff
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## Remove the environment, caches and what the demo wrote
	rm -rf $(VENV) build dist demo-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find sacvit_deploy tests -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/demo.stamp: PACKAGE := .
$(VENV)/test.stamp: PACKAGE := .[dev,export,tensorrt-rtx,train]
$(VENV)/test.stamp: | $(VENV)/stubs
$(VENV)/%.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '$(PACKAGE)'
	touch $@

# Type stubs of TensorRT 10, to check the code against; the library itself has several gigabytes.
$(VENV)/stubs: | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt \
		--target $@ tensorrt-stubs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
