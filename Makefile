# make mcpl     set up if needed, then run the default main job
# make test     set up if needed, then lint and the whole test suite
# Other verbs:  make help
#
# PYTHON  interpreter that creates the environment (3.10 or newer)
# VENV    where the environment lives
# ARGS    further arguments for main.py, for example  make mcpl ARGS="--seed 7"

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each test worker is a process of its own: more threads than cores only wait for each other.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help venv mcpl gallery test quick lint format clean

help:
	@echo "make mcpl    learn the default words with main.py and configs/mcpl.yaml (ARGS=... is passed on)"
	@echo "make gallery learn words and draw the README's picture, docs/images/teaser.png (ARGS=... is passed on)"
	@echo "make test    lint and the whole test suite"
	@echo "make quick   the tests that take seconds"
	@echo "make lint    ruff check, ruff format --check and mypy"
	@echo "make format  rewrite the files as ruff wants them"
	@echo "make venv    only create the environment in $(VENV)"
	@echo "make clean   remove the environment and the tools' caches"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): requirements.txt setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

venv: $(STAMP)

mcpl: $(STAMP)
	$(BIN)/python main.py --base configs/mcpl.yaml $(ARGS)

gallery: $(STAMP)
	$(BIN)/python scripts/gallery.py $(ARGS)

test: lint
	$(PYTEST)

quick: $(STAMP)
	$(PYTEST) -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
