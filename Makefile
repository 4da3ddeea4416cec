# Needs Python >= 3.11 with venv, and make. Everything else is installed into .venv, in the versions of constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input

# A stamp exists once its installation is complete, so an interrupted one is done again.
CREATED   := $(VENV)/.stamp-created
INSTALLED := $(VENV)/.stamp-installed
DEV       := $(VENV)/.stamp-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-arm lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## plan, export, run and validate the small demo model (no torch needed)
	$(BIN)/edgepack demo

test: $(DEV) lint  ## lint, then all tests but those marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-arm: $(DEV)  ## the runtimes on ARM cores, in qemu; skipped where that cannot be downloaded
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.arm -q

lint: $(DEV)  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(DEV)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and everything that the targets made
	rm -rf $(VENV) .arm build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v "$(PYTHON)" >/dev/null 2>&1 || \
	  { echo "error: no '$(PYTHON)' on PATH; edgepack needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); edgepack needs 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: '$(PYTHON)' has no venv module; install it (Debian, Ubuntu: python3-venv) or choose another: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PIP) --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
	@touch $@

# Older pips cannot install a pyproject.toml in place. Nothing is fetched where pip is new enough.
$(INSTALLED): $(CREATED) pyproject.toml constraints.txt
	$(PIP) install -q "pip>=23"
	$(PIP) install -q -c constraints.txt -e ".[onnx,run]"
	@touch $@

# [dev] contains [onnx,run]: after this, `make demo` has nothing left to install.
$(DEV): $(CREATED) pyproject.toml constraints.txt
	$(PIP) install -q "pip>=23"
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	@touch $(INSTALLED) $@
