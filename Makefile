# make demo     train a small model on the Python library's source and let it write code (5 minutes)
# make test     the whole test suite
# make mutate   mutation testing of the emulator; MANIFEST=folder: of other kernels
# make sanitize the emulator's tests with AddressSanitizer and UndefinedBehaviorSanitizer
# make nightly  the tests that take long; writes tests/nightly.json
# make bench    kernel benchmarks, on a Hopper GPU
# make lint     formatters, linters, types
#
# Each makes .venv and installs into it what it needs. PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BUILD_FILES := pyproject.toml constraints.txt CMakeLists.txt \
    $(shell find build_backend cmake csrc -type f -not -path '*/__pycache__/*')

.PHONY: demo test mutate sanitize nightly bench lint clean

demo: $(VENV)/installed
	$(BIN)/python scripts/demo.py

# Tests run in as many processes as there are cores, so each process computes on one.
test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --timeout 300

MANIFEST ?= $(wildcard tests/emulator/mutants/*)

mutate: $(VENV)/installed-test
	$(BIN)/python -m scripts.mutate $(MANIFEST)

sanitize: $(VENV)/installed-test
	$(BIN)/python -m scripts.sanitize

nightly: $(VENV)/installed-test
	$(BIN)/python -m scripts.nightly

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find csrc tests -name '*.cu' -o -name '*.cuh' -o -name '*.?pp' | xargs $(BIN)/clang-format --dry-run --Werror

clean:
	rm -rf $(VENV) build demo

# Where it fails (Debian without python3-venv), the interpreter is already there, without pip.
$(VENV)/bin/python:
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/installed: $(VENV)/bin/python $(BUILD_FILES)
	@echo "installing Abyssal into $(VENV) (the first time, this downloads PyTorch and nvcc)"
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(PIP) --editable '.[dev]'
	@touch $@
