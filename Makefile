# The only list of verbs. `make help` prints them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
FUZZ := $(VENV)/.fuzz
MINUTES ?= 30
# The suite starts hundreds of processes: compiling every module again in each would take longer than the tests.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c deploy/constraints.txt

.PHONY: help demo test soak trust fuzz check fmt bench bench-pack bench-s3 bench-http bench-zones serve deploy-check scrape-check image-test restore-drill clean

help: ## Print the verbs
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(RUNTIME): pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP) -e '.[dev]'
	@touch $@

$(BENCH): $(DEV)
	$(PIP) -e '.[bench]'
	@touch $@

$(FUZZ): $(DEV)
	$(PIP) -e '.[fuzz]'
	@touch $@

demo: $(RUNTIME) ## Pack real files, get one back by CLI and HTTP, compare
	@$(BIN)/python deploy/demo.py

test: $(DEV) ## Run the whole test suite
	$(BIN)/python -m pytest -n auto --dist loadgroup

soak: $(DEV) ## Run the long forms of the tests (bounded: half an hour)
	$(BIN)/python -m pytest -n auto --dist loadgroup -m soak --timeout 1800

trust: $(FUZZ) ## Inject every fault, break rules on purpose; TRUST_SCALE=1 takes half an hour on two cores, 0.1 about 3 minutes
	$(BIN)/python -m tests.trust

fuzz: $(FUZZ) ## Fuzz all that reads what it cannot trust, for MINUTES=30
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

check: $(DEV) ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/promtool: | $(DEV)
	sh deploy/promtool.sh $(BIN)

deploy-check: $(DEV) $(BIN)/promtool ## Check what is in deploy/ without an engine or a cluster
	$(BIN)/python -m deploy.check

scrape-check: $(DEV) $(BIN)/promtool ## Let a real Prometheus scrape two workers, and ask it what the dashboard asks
	$(BIN)/python -m deploy.scrape_check

image-test: $(DEV) ## Build the image and run it, without an engine (as root on Debian)
	$(BIN)/python -m deploy.image_test

restore-drill: $(DEV) ## Copy a store while a packer runs, repair the copies, compare
	$(BIN)/python -m deploy.restore_drill

fmt: $(DEV) ## Format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-pack: $(DEV) ## Measure packing beside tar, zip and zipfile, with S3 on this machine
	$(BIN)/python -m benchmarks.pack

bench: $(DEV) ## Run the benchmarks and print their tables
	$(BIN)/python -m benchmarks

bench-s3: $(DEV) ## Measure reading from S3 on SeaweedFS; LARGE=1 also sends 4 GiB there and back
	$(BIN)/python -m benchmarks.s3
	$(if $(LARGE),$(BIN)/python -m benchmarks.s3_large)

bench-http: $(BENCH) ## Measure the HTTP service beside nginx, Starlette and FastAPI (needs wrk)
	$(BIN)/python -m benchmarks.http

bench-zones: $(DEV) ## Measure hedged reads from two places, one of them slow now and then
	$(BIN)/python -m benchmarks.zones

serve: $(RUNTIME) ## Serve the store of DES_BASE_DIR on DES_HTTP_HOST:DES_HTTP_PORT
	$(BIN)/des serve

clean: ## Remove what the verbs above made
	rm -rf $(VENV) .fuzz trust.json build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis data benchmarks/results
