# Two commands set everything up on a machine with Python 3.11 or later and make: `make search` and `make test`.
PYTHON ?= python3
VENV ?= .venv
SPACE ?= cpu
BIN := $(VENV)/bin

.PHONY: search test check clean
.DEFAULT_GOAL := search

search: $(VENV)/.installed
	$(BIN)/moe-optuna search $(SPACE) --out runs/$(SPACE)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,ray,postgres]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist
