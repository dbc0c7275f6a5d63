# Two commands do everything:
#   make demo    set up, map a real language model, write the figure, the atlas and the page into demo/
#   make test    set up, run every check
# Both need Python 3.11 or newer and nothing else. What is there already is reused.

VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
# Test processes. Each needs up to 3 GB; torch gets one thread in each.
JOBS ?= 2
# What bench-shape maps: tiny, 8b or 70b.
SHAPE ?= 8b
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
  command -v "$$name"; break; fi; done)

.PHONY: help demo test test-all test-cluster lint lint-page bench bench-shape bench-gpu bench-scaling bench-page docs clean

help:
	@echo "make demo    map SmolLM2-135M and write the figure, the atlas and the page into $(DEMO)/"
	@echo "make test    run every check: format, lint, types, tests"
	@echo "make test-all  the same, with every variant of every model family and format"
	@echo "make test-cluster   install Ray and run the tests of --cluster"
	@echo "make lint    format, lint and types only"
	@echo "make lint-page   the same of the page's JavaScript and style alone"
	@echo "make bench   how long every command and the mapping take, against the plain way and the floor"
	@echo "make bench-shape   the same on random weights of Llama-3.1-8B's shape (16 GB in shapes/; SHAPE=70b, SHAPE=tiny)"
	@echo "make bench-gpu   every route on a GPU against the processor and float64 (SHAPE as above)"
	@echo "make bench-scaling   how the time grows with pairs, heads, d_model and vocabulary"
	@echo "make bench-page   how fast the page opens and follows a slider, in Chromium"
	@echo "make docs    write docs/cli.md again from the code"
	@echo "make clean   remove the virtual environment, caches and $(DEMO)/"

demo: $(VENV)/.installed
	$(BIN)/headatlas map smollm2-135m -o $(DEMO)
	@echo
	@echo "Look at $(DEMO)/categories.png, open $(DEMO)/report.html in a browser, read $(DEMO)/description.txt."
	@echo "Ask more: $(BIN)/headatlas heads $(DEMO)"

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not exhaustive"

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Not part of `make test`: Ray takes 240 MB.
test-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[cluster]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/mapping/test_cluster.py

lint: lint-page
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

# Node comes from a wheel, so nothing need be installed beside Python.
lint-page: node_modules/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" npm run --silent check

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.waiting

bench-shape: $(VENV)/.installed-dev
	test -e shapes/$(SHAPE)/model.safetensors.index.json || \
	  $(BIN)/python -m benchmarks.checkpoints shapes/$(SHAPE) --shape $(SHAPE)
	$(BIN)/python -m benchmarks.map_shape shapes/$(SHAPE)

bench-gpu: $(VENV)/.installed-dev
	test -e shapes/$(SHAPE)/model.safetensors.index.json || \
	  $(BIN)/python -m benchmarks.checkpoints shapes/$(SHAPE) --shape $(SHAPE)
	$(BIN)/python -m benchmarks.gpu smollm2-135m --shape shapes/$(SHAPE)

bench-scaling: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.scaling shapes/scaling

bench-page: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.page

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/make_cli.py

clean:
	rm -rf $(VENV) $(DEMO) node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer was found; install one, or run make PYTHON=/path/to/python3"; exit 2; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment; install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 2; }

# The stamps are newer than these files once pip has succeeded, so a second run does not call pip.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

node_modules/.installed: package.json package-lock.json $(VENV)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --no-audit --no-fund --loglevel=error
	@touch $@
