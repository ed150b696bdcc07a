# The only list of verbs. `make help` prints them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test check fmt bench serve clean

help: ## Print the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## Pack real files, get one back by CLI and HTTP, compare
	@bash deploy/demo.sh $(BIN)

test: $(READY) ## Run the whole test suite
	$(BIN)/python -m pytest -n auto

check: $(READY) ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(READY) ## Format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Run the benchmarks and print their tables
	$(BIN)/python -m benchmarks

serve: $(READY) ## Serve the store of DES_BASE_DIR on DES_HTTP_HOST:DES_HTTP_PORT
	$(BIN)/des serve

clean: ## Remove what the verbs above made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis data benchmarks/results
