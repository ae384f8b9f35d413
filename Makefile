# make demo   converts a bundled checkpoint and checks the result against torch
# make test      lint, types and every test; of a sweep over many like cases (each step a run can be killed before, each
#                broken byte, each cell of a table) a spread sample. What CI runs
# make test-all  the same with every case of every sweep
# make test-faults  kills, errors and power cuts at every call that changes a file, races, flipped bits, budgets in cgroups:
#                   hours. They want a C compiler, root, and libfuse2 for two mounts of a folder; else they are skipped
# make check     the quick tests alone, and of every table of cases the ends and the middle
# make test-deepspeed  the tests that load a result into the real DeepSpeed engine, or convert what it, the Trainer of
#                      transformers and accelerate save; they want a C++ compiler
# make test-megatron   the tests that load a result into the real Megatron-Core; a CPU is enough
#                      with a checkout of Megatron-LM in PYTHONPATH, its own parser and load_checkpoint too
# make fuzz      makes FILES hostile files and FOLDERS folders, and looks at each with every command; SEED names them
# The tests of the HTML report want a Chromium in PATH, those of completion zsh and fish; they are skipped without.
# All make the virtual environment themselves. The variables can be overridden: make test PYTHON=python3.12
# CASES=all takes every case in any of them.

PYTHON ?= python3
VENV ?= .venv
# Installed first: a range that admits something newer would pull a build for GPUs.
TORCH ?= torch==2.13.0
WORKERS ?= auto
FILES ?= 500000
FOLDERS ?= 3000
SEED ?= 1
CASES ?= spread
# A module is compiled once, not again by each of the processes that tests start.
export PYTHONDONTWRITEBYTECODE :=

BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cases $(CASES)
DEMO_SRC := tests/fixtures/frameworks/bs_bloom_tp2pp2_fp32_z0
DEMO_DST := demo-output

.PHONY: demo test test-all test-faults test-deepspeed test-megatron lint check bench fuzz clean

# What a user installs; the demo needs no more.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/ready: $(VENV)/installed
	$(PIP) -c constraints.txt -e ".[test,lint,plot,browser]"
	touch $@

demo: $(VENV)/installed
	rm -rf $(DEMO_DST)
	$(BIN)/streamconv plan $(DEMO_SRC) --tp 1 --pp 3 --max-ram 1G
	@echo
	$(BIN)/streamconv convert $(DEMO_SRC) $(DEMO_DST) --tp 1 --pp 3 --max-ram 1G
	@echo
	$(BIN)/streamconv verify $(DEMO_DST) --against $(DEMO_SRC)
	@echo
	$(BIN)/python examples/check_with_torch.py $(DEMO_SRC) $(DEMO_DST) --vocab-size 100

test: lint
	$(PYTEST)

test-all: CASES = all
test-all: test

test-faults: CASES = all
test-faults: $(VENV)/ready
	$(PYTEST) tests/faults tests/memory/test_cgroups.py

check: CASES = few
check: $(VENV)/ready
	$(PYTEST) -m "not slow and not browser"

# DeepSpeed has no wheels, and its set-up imports the torch that is installed.
$(VENV)/deepspeed: $(VENV)/ready
	$(PIP) setuptools wheel
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation -c constraints.txt deepspeed ninja accelerate peft
	touch $@

test-deepspeed: $(VENV)/deepspeed
	PATH="$(abspath $(BIN)):$$PATH" $(PYTEST) \
		tests/formats/deepspeed/test_real_engine.py tests/formats/deepspeed/test_real_zero.py \
		tests/formats/deepspeed/test_zero_writer.py tests/bigscience/test_inspectors.py

$(VENV)/megatron: $(VENV)/ready
	$(PIP) -c constraints.txt megatron-core
	touch $@

test-megatron: $(VENV)/megatron
	$(PYTEST) tests/formats/megatron/core/real

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(PIP) -c constraints.txt -e ".[bench]"
	PYTHON=$(BIN)/python sh benchmarks/short.sh

# OUT=counts.json records what was made.
fuzz: $(VENV)/ready
	$(BIN)/python -m tests.fuzz.run --seed $(SEED) --files $(FILES) --folders $(FOLDERS) $(if $(OUT),--out $(OUT))

clean:
	rm -rf $(VENV) $(DEMO_DST)
