# Flota: every task has one definition, and it is here. `make` alone lists them.
# Needs only make, git and a Python >= 3.11 with a package index in reach.

PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
BIN := .venv/bin
JOBS ?= 3
# One more than CI has cores: one worker's tests wait most of the time. Compiled files are kept, whatever the environment
# says: every worker, and every process that a test starts, would else compile the whole source once more.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo run check format test test-fast test-deps fuzz bench docs firmware firmware-check requirements clean

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/.flota-run: requirements/run.txt pyproject.toml tools/bootstrap.py
	@test -n "$(PYTHON)" || { echo "Flota needs Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) tools/bootstrap.py run && touch $@

.venv/.flota-dev: requirements/dev.txt pyproject.toml tools/bootstrap.py
	@test -n "$(PYTHON)" || { echo "Flota needs Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) tools/bootstrap.py dev && touch .venv/.flota-run $@

setup: .venv/.flota-dev ## Make .venv with everything for development

demo: .venv/.flota-run ## A fleet of virtual devices updates on this machine (KEEP=1 leaves the server up)
	@$(BIN)/flota demo $(if $(KEEP),--keep)

run: .venv/.flota-run ## Start the server with ./flota-data
	@$(BIN)/flota up --data flota-data

check: .venv/.flota-dev ## Format, lint, strict types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.flota-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: .venv/.flota-dev ## The test-suite
	$(PYTEST)

test-fast: .venv/.flota-dev ## The test-suite without sweeps and without scenarios of several processes
	$(PYTEST) -m "not sweep and not scenario"

test-deps: .venv/.flota-dev ## Install what some tests need and pip cannot bring (Debian packages)
	@sh tools/install-test-deps.sh

fuzz: .venv/.flota-dev ## Fuzz every reader of foreign bytes (RUNS=1000000 SECONDS=3600 ONLY=TEXT ENGINE=atheris|built-in)
	@$(if $(ENGINE),,$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/python -m pip install -q --no-input --disable-pip-version-check -r requirements/fuzz.in 2>/dev/null || true)
	@$(BIN)/python -m tests.fuzz --runs $(or $(RUNS),1000000) --seconds $(or $(SECONDS),3600) \
		$(if $(ONLY),--only '$(ONLY)') --engine $(or $(ENGINE),auto)

mutants: .venv/.flota-dev ## Break boot loaders, flash and agents on purpose: each has to be noticed
	$(BIN)/python tools/mutants.py

bench: .venv/.flota-dev ## Every benchmark, each side by side with a peer
	@set -e; for figure in benchmarks/[a-z]*.py; do echo "== $$figure"; $(BIN)/python $$figure; done

docs: .venv/.flota-dev ## Check the documentation: links, commands and generated parts
	$(BIN)/pytest -q tests/house/test_documentation.py

firmware: ## Rebuild the sample firmware (needs gcc-riscv64-unknown-elf)
	sh examples/firmware/build.sh

firmware-check: ## Rebuild the sample firmware and compare it with the committed files
	sh examples/firmware/check.sh

requirements: ## Pin the newest versions that fit, with hashes (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade \
		--no-emit-index-url pyproject.toml requirements/build.in -o requirements/run.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade \
		--no-emit-index-url --extra test pyproject.toml requirements/build.in -c requirements/run.txt -o requirements/dev.txt

clean: ## Remove the environment and all caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
