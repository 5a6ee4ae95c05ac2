# Two commands do everything: `make demo` and `make test`.
#   PYTHON=python3.13   the interpreter (3.10 to 3.13)      VENV=.venv   the environment's folder
#   DEMO_FLAGS=...      flags of `retinanet demo`       TESTS=...    what pytest runs
#   BENCH_FLAGS=...     flags of experiments.bench
#   FAST=1              `make test` without the tests that take more than about a second
#   WORKERS=auto        test processes at once; 0 for one that a debugger can enter
PYTHON ?= python3
VENV ?= .venv
DEMO_FLAGS ?=
TESTS ?= tests
BENCH_FLAGS ?=
WORKERS ?= auto
FAST ?=

.PHONY: demo test bench lint docs clean

demo: $(VENV)/.installed
	$(VENV)/bin/retinanet demo $(DEMO_FLAGS)

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder $(if $(FAST),-m "not slow and not once") $(TESTS)

# Beside the peers that are installed: $(VENV)/bin/pip install -e '.[bench]'
bench: $(VENV)/.installed
	$(VENV)/bin/python -m experiments.bench $(BENCH_FLAGS)

lint: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

# The site in build/docs: guides, and the API reference from the docstrings. A warning is an error.
docs: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[docs]'
	$(VENV)/bin/python docs/build.py --output=build/docs

# The mark is written last: an interrupted installation is repeated.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "error: $(PYTHON) is Python %d.%d; retinanet_tf needs 3.10 to 3.13. Name another one: make PYTHON=python3.11" % v)'
	@echo "Installing requirements.txt into $(VENV) (about a minute, 2 GB)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) runs build
