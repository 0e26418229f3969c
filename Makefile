# Two commands for people and for CI: `make demo` and `make test`.
# PYTHON chooses the interpreter (3.10 or newer), VENV the folder of the virtual environment.
PYTHON ?= python3
VENV ?= .venv
# The torch that tests use. A build for the CPU is enough, where pip can find one.
TORCH ?= torch==2.13.0

# Console scripts of a virtual environment carry its path in their first line and break where that path has
# a space, so everything is run as a module of its interpreter.
RUN = "$(VENV)/bin/python" -m
PIP = $(RUN) pip install --quiet --disable-pip-version-check

.PHONY: demo test check format clean

## Index the sample collection, measure four ways of searching it, answer questions.
demo: $(VENV)/demo.stamp
	$(RUN) crossrank index data/sample --to demo-index --replace
	"$(VENV)/bin/python" examples/demo.py data/sample demo-index

## Everything that must pass before a change is taken.
test: check
	$(RUN) pytest --numprocesses auto --maxprocesses 8 --dist worksteal

## Lint, format and types only.
check: $(VENV)/dev.stamp
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

## Let ruff rewrite what it can.
format: $(VENV)/dev.stamp
	$(RUN) ruff check --fix
	$(RUN) ruff format

clean:
	rm -rf "$(VENV)" demo-index dist build

# What installing depends on. A stamp says that this virtual environment has it.
INSTALLED = pyproject.toml hatch_build.py src/crossrank/runtime/native/bert_layer.c

$(VENV)/demo.stamp: $(INSTALLED) | $(VENV)/bin/python
	$(PIP) --editable ".[search,eval]"
	@touch "$@"

$(VENV)/dev.stamp: $(INSTALLED) | $(VENV)/bin/python
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[dev]"
	@touch "$@"

$(VENV)/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "crossrank needs Python 3.10 or newer, and '$(PYTHON)' was not found." >&2; \
		echo "Install one, or name it: make demo PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "crossrank needs Python 3.10 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." >&2; \
		echo "Name another: make demo PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' || { \
		echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
