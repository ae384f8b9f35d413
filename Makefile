# make demo   converts a bundled checkpoint and checks the result against torch
# make test   lint, types and all tests, as CI runs them
# make check  the quick tests alone
# make test-deepspeed  the tests that load a result into the real DeepSpeed engine; they want a C++ compiler
# make test-megatron   the tests that load a result into the real Megatron-Core; a CPU is enough
#                      with a checkout of Megatron-LM in PYTHONPATH, its own parser and load_checkpoint too
# The tests of the HTML report want a Chromium in PATH, and are skipped without one.
# Both make the virtual environment themselves. The variables can be overridden: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
# Installed first: a range that admits something newer would pull a build for GPUs.
TORCH ?= torch==2.13.0
WORKERS ?= auto

BIN := $(VENV)/bin
DEMO_SRC := tests/fixtures/frameworks/bs_bloom_tp2pp2_fp32_z0
DEMO_DST := demo-output

.PHONY: demo test test-deepspeed test-megatron lint check bench clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint,plot,browser]"
	touch $@

demo: $(VENV)/ready
	rm -rf $(DEMO_DST)
	$(BIN)/streamconv plan $(DEMO_SRC) --tp 1 --pp 3 --max-ram 1G
	@echo
	$(BIN)/streamconv convert $(DEMO_SRC) $(DEMO_DST) --tp 1 --pp 3 --max-ram 1G
	@echo
	$(BIN)/streamconv verify $(DEMO_DST) --against $(DEMO_SRC)
	@echo
	$(BIN)/python examples/check_with_torch.py $(DEMO_SRC) $(DEMO_DST) --vocab-size 100

test: lint
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/ready
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not browser"

# DeepSpeed has no wheels, and its set-up imports the torch that is installed.
$(VENV)/deepspeed: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
		-c constraints.txt deepspeed ninja
	touch $@

test-deepspeed: $(VENV)/deepspeed
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n $(WORKERS) \
		tests/formats/deepspeed/test_real_engine.py tests/bigscience/test_inspectors.py

$(VENV)/megatron: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt megatron-core
	touch $@

test-megatron: $(VENV)/megatron
	$(BIN)/python -m pytest -n $(WORKERS) tests/formats/megatron/core/real

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	PYTHON=$(BIN)/python sh benchmarks/short.sh

clean:
	rm -rf $(VENV) $(DEMO_DST)
