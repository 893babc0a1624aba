# The README's two commands are `make demo` and `make test`. Each makes its own virtual environment in .venv and
# installs what it needs; nothing has to be activated. PYTHON chooses the interpreter (3.10 or newer).
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What pip is asked for where torch is missing: the CPU build unless a GPU is visible. The index has the CPU builds
# (2.13.0+cpu counts as newer than 2.13.0); it is only an extra one, for machines that cannot reach it.
TORCH ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo "torch>=2.9" || echo "torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu")
BUILT_FROM := setup.py pyproject.toml $(shell find csrc -type f)
CPP = $(shell find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h')

.PHONY: demo test lint format bench gpu clean

demo: $(VENV)/installed
	$(BIN)/anifast demo --out demo

test: lint
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest --durations=15

lint: $(VENV)/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/python benchmarks/report.py --check

format: $(VENV)/developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# Measures every op and system on this machine, writes benchmarks/results and the README's tables. AUTHORS names a
# checkout of github.com/mchong6/GANsNRoses (its branch main) to measure beside ours, AUTHORS_DISENTANGLE one of
# github.com/stormraiser/adversarial-disentangle, AUTHORS_BLENDGAN one of github.com/onion-liu/BlendGAN.
bench: $(VENV)/developer
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python benchmarks/run.py
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python -m benchmarks.systems.bench_cyclegan --out benchmarks/results
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python -m benchmarks.systems.bench_stylegan2 --out benchmarks/results
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python -m benchmarks.systems.bench_lpips --out benchmarks/results
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python -m benchmarks.systems.bench_gnr $(if $(AUTHORS),--authors $(AUTHORS)) --out benchmarks/results
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python -m benchmarks.systems.bench_disentangle $(if $(AUTHORS_DISENTANGLE),--authors $(AUTHORS_DISENTANGLE)) --out benchmarks/results
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python -m benchmarks.systems.bench_blendgan $(if $(AUTHORS_BLENDGAN),--authors $(AUTHORS_BLENDGAN)) --out benchmarks/results
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python -m benchmarks.systems.bench_twingan --out benchmarks/results
	$(BIN)/python benchmarks/report.py --write README.md

# Everything there is to do on a machine with a GPU, with that machine's own python: no environment, no network.
gpu:
	$(PYTHON) tests/gpu/run.py all

clean:
	rm -rf $(VENV) build dist *.egg-info anifast/_C*.so anifast/_build.json

# torch comes first: the extension is compiled against the torch that it will run with.
$(VENV)/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "anifast: error: $(PYTHON) is older than 3.10; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel ninja pybind11
	@touch $@

# Editable, so that the sources are what runs; compiled again when a source of the extension changes.
$(VENV)/installed: $(VENV)/torch $(BUILT_FROM)
	$(BIN)/python -m pip install --no-build-isolation -v --editable . || { echo "anifast: error: the installation failed; pip's output above says why. ANIFAST_BUILD=none make ... installs without kernels" >&2; exit 1; }
	@$(BIN)/anifast doctor
	@touch $@

$(VENV)/developer: $(VENV)/installed
	$(BIN)/python -m pip install --quiet "anifast[dev]"
	@touch $@
