# Two words to know: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
# e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" on a machine without a GPU
PIP_ARGS ?=
# e.g. BENCH_ARGS="sft-lora --rounds 1"
BENCH_ARGS ?=
BIN := $(abspath $(VENV))/bin
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
SETUP_FILES := pyproject.toml setup.py constraints.txt

# Packages of weights in few bits; some slow down or change what they are merely installed beside, so they lie apart.
QUANT_PACKAGES := bitsandbytes torchao hqq compressed-tensors einops loguru termcolor
QUANT_VENV := $(VENV)-quantized
QUANT_STAMP := $(QUANT_VENV)/.installed

.PHONY: help setup dev demo test test-slow test-quantized check format docs bench bench-learning clean

help:
	@echo "make demo       fine-tune a real 135M model on this machine and see its answers before and after"
	@echo "make test       run the tests"
	@echo "make test-slow  run the slow tests (real processes, kill -9, two ranks)"
	@echo "make test-quantized  run the tests of quantized training, with its packages in an environment beside"
	@echo "make check      format, lint, types, layers, size budgets, stale docs"
	@echo "make bench      measure training, preprocessing and answering against plain transformers"
	@echo "make bench-learning  see each way of training learn: rewards, margins and accuracies on a real 135M model"
	@echo "make docs       write the generated pages again"

$(RUN_STAMP): $(SETUP_FILES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[torch]"
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[torch,metrics,api,webui,dev]"
	@touch $@

setup: $(RUN_STAMP)

dev: $(DEV_STAMP)

demo: $(RUN_STAMP)
	$(BIN)/python scripts/demo.py

# One thread per worker: the models are tiny, the processes are what counts.
test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

test-slow: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" tests

$(QUANT_STAMP): $(DEV_STAMP)
	$(BIN)/python -m venv $(QUANT_VENV)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$($(QUANT_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth
	$(QUANT_VENV)/bin/python -m pip install --quiet --no-deps $(PIP_ARGS) -c constraints.txt $(QUANT_PACKAGES)
	@touch $@

test-quantized: $(QUANT_STAMP)
	OMP_NUM_THREADS=1 $(QUANT_VENV)/bin/python -m pytest -n 2 --dist loadfile -m quantized tests/bench tests/examples tests/model tests/train

check: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_size.py
	$(BIN)/python scripts/make_docs.py --check

format: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV_STAMP)
	$(BIN)/python scripts/make_docs.py

bench: $(DEV_STAMP)
	$(BIN)/llamafactory-cli bench $(BENCH_ARGS)

bench-learning: $(DEV_STAMP)
	$(BIN)/python -m pytest -m learning -s tests/learning

clean:
	rm -rf $(VENV) $(QUANT_VENV) build dist .pytest_cache .ruff_cache .hypothesis
