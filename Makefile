# Every target makes the environment that it needs; `make demo` and `make test` are the two to know.
#   PYTHON=python3.12 make test        another interpreter
#   TORCH="torch>=2.6" make test       another torch than the one that CI runs
#   PIP_QUIET=1 make test              without pip's lines
#   make bench BENCH="--size 1b --runs 1"    options of benchmarks/bench.py
#   make mutants MUTANTS="--seed 7"          options of tools/mutants.py

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
PARITY := .venv-parity/bin
FUSIONBENCH := .venv-fusionbench/bin
NATIVE := $(wildcard src/native/*.cpp src/native/*.h)

export OMP_NUM_THREADS ?= 1

.PHONY: help demo test lint format types imports docs-check check parity oracle layers architectures faults hostile fuzz gpu ray \
        browser mutants bench clean

help:
	@echo "make demo        train a small family on handwritten digits, merge it, verify it"
	@echo "make test        run the tests"
	@echo "make check       what CI runs: lint, types, imports, test, docs-check"
	@echo "make format      rewrite the code in the house's format"
	@echo "make parity      compare with mergekit 0.1.5 and FusionBench 0.2.33 in environments of their own"
	@echo "make oracle      compare every method with plain numpy, and write docs/oracle.md"
	@echo "make layers      slice the layers of every family of transformers, and write docs/sliced-layers.md"
	@echo "make architectures    average, slice and adapt 60 architectures, and write docs/architectures-tested.md"
	@echo "make faults | hostile | fuzz | gpu | ray    the marked tests"
	@echo "make browser     look at reports in a headless Chromium"
	@echo "make mutants     whether the tests notice small random mistakes in methods and value graph"
	@echo "make bench       time weightsmith, mergekit and the floor side by side"

.venv/.torch:
	@echo "An environment in .venv, and into it $(TORCH): the largest download, 190 MB for processors alone,"
	@echo "gigabytes where the package index has it with CUDA. TORCH=... takes another, such as a wheel that you have."
	$(PYTHON) -m venv .venv
	$(PIP) "$(TORCH)"
	@touch $@

.venv/.demo: .venv/.torch pyproject.toml setup.py $(NATIVE)
	@echo "weightsmith, and what the demo needs (about 110 MB): numpy, scikit-learn with its digits, matplotlib for"
	@echo "reports ... With a C++ compiler the kernels are built too, in 20 seconds of processor time."
	$(PIP) --constraint constraints.txt --editable ".[demo]"
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml constraints.txt
	@echo "All that tests, checks and documentation need, into .venv"
	WEIGHTSMITH_NO_NATIVE=1 $(PIP) --constraint constraints.txt --editable ".[demo,test,lint]"
	@touch $@

.venv/.ready: .venv/.installed setup.py $(NATIVE)
	@echo "Building the C++ kernels"
	$(PIP) --no-deps --editable .
	@touch $@

.venv/.ray: .venv/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray]"
	touch $@

.venv/.bench: .venv/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@

.venv-parity/.ready: constraints.txt
	$(PYTHON) -m venv .venv-parity
	$(PARITY)/python -m pip install --quiet "$(TORCH)"
	$(PARITY)/python -m pip install --quiet --constraint constraints.txt mergekit==0.1.5 pytest hypothesis
	WEIGHTSMITH_NO_NATIVE=1 $(PARITY)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv-fusionbench/.ready: tests/parity/fusionbench/requirements.txt
	$(PYTHON) -m venv .venv-fusionbench
	$(FUSIONBENCH)/python -m pip install --quiet "$(TORCH)"
	$(FUSIONBENCH)/python -m pip install --quiet --requirement tests/parity/fusionbench/requirements.txt
	$(FUSIONBENCH)/python -m pip install --quiet --no-deps fusion-bench==0.2.33
	WEIGHTSMITH_NO_NATIVE=1 $(FUSIONBENCH)/python -m pip install --quiet --editable .
	touch $@

# What the tests need has all that the demo needs.
demo: $(if $(wildcard .venv/.ready),.venv/.ready,.venv/.demo)
	$(BIN)/python examples/digits/run.py demo-output

test: .venv/.ready
	$(BIN)/python -m pytest

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/.ready
	$(BIN)/mypy

imports: .venv/.ready
	$(BIN)/lint-imports

docs-check: .venv/.ready
	$(BIN)/python tools/check_docs.py README.md docs

check: lint types imports test docs-check

parity: .venv/.ready .venv-parity/.ready .venv-fusionbench/.ready
	$(PARITY)/python -m pytest -m parity tests/parity tests/methods --ignore tests/parity/fusionbench
	$(FUSIONBENCH)/python -m pytest -m parity tests/parity/fusionbench

oracle: .venv/.ready
	rm -rf build/oracle && mkdir -p build/oracle
	ORACLE_RESULTS=build/oracle $(BIN)/python -m pytest -n auto -m oracle tests/oracle
	$(BIN)/python tools/make_oracle_table.py build/oracle

layers: .venv/.ready
	rm -rf build/layers && mkdir -p build/layers
	LAYER_RESULTS=build/layers $(BIN)/python -m pytest -n auto -m slow tests/checkpoints/test_sliced_layers.py
	$(BIN)/python tools/make_layer_table.py build/layers

architectures: .venv/.ready
	rm -rf build/architectures && mkdir -p build/architectures
	ARCHITECTURE_RESULTS=build/architectures $(BIN)/python -m pytest -m slow \
		tests/checkpoints/test_architectures.py::test_no_architecture_gives_something_wrong
	$(BIN)/python tools/make_architecture_table.py build/architectures

faults: .venv/.ready
	$(BIN)/python -m pytest -m faults

hostile: .venv/.ready
	$(BIN)/python -m pytest -m hostile tests/hostile

fuzz: .venv/.ready
	$(BIN)/python -m pytest -m fuzz

gpu: .venv/.ready
	$(BIN)/python -m pytest -m gpu

browser: .venv/.ready
	$(BIN)/python -m pytest -m browser

ray: .venv/.ray
	$(BIN)/python -m pytest -m ray

mutants: .venv/.ready
	$(BIN)/python tools/mutants.py $(MUTANTS)

bench: .venv/.bench .venv-parity/.ready
	$(BIN)/python benchmarks/bench.py $(BENCH)

clean:
	rm -rf build dist demo-output src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
