# `make search` and `make test` are all a newcomer needs: each makes the environment, installs, and runs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# tests that need an S3 server skip without it
S3 := OFMU_TEST_S3_SERVER=$(abspath $(VENV))/s3/bin/moto_server

.PHONY: install search test test-cluster bench check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): one to three minutes on an idle machine, about 2.3 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.s3: tests/s3-server.txt | $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/s3
	$(VENV)/s3/bin/pip install --quiet -r tests/s3-server.txt
	touch $@

search: install
	$(BIN)/ofmu search

test: install $(VENV)/.s3
	$(S3) $(BIN)/python -m pytest -n 2 --dist loadgroup

# What does real harm to clusters of several nodes, and soaks: about half an hour, one test at a time.
test-cluster: install $(VENV)/.s3
	$(S3) $(BIN)/python -m pytest -m long

# Measured figures, not verdicts; each prints its table, and each can be run alone: docs/scale.md says what they show.
bench: install
	for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

check: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
