# `make search` and `make test` are all a newcomer needs: each makes the environment, installs, and runs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: install search test test-cluster bench check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

search: install
	$(BIN)/ofmu search

test: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# What does real harm to clusters of several nodes, and soaks: about half an hour, one test at a time.
test-cluster: install
	$(BIN)/python -m pytest -m long

# Measured figures, not verdicts; each prints its table, and each can be run alone: docs/scale.md says what they show.
bench: install
	for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

check: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
