# Two commands do everything: `make pretrain` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= quickstart
# Overrides, as in: make pretrain CONFIG=shapenet SET="trainer.epochs=20 trainer.batch_size=32"
SET    ?=
ARGS   ?=
EXTRAS ?= dev
# Processes of the tests, of one thread each: three fill two cores, since some tests wait for processes of their own.
JOBS   ?= 3

BIN       := $(VENV)/bin
STAMP     := $(VENV)/.installed
OVERRIDES := $(foreach item,$(SET),--set $(item))

.DEFAULT_GOAL := help
.PHONY: help setup cache pretrain downstream test lint typecheck bench gpu parity pictures clean

help: ## what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv with everything the project needs

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is needed, this is %d.%d; name one with PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

cache: $(STAMP) ## build the teacher cache of CONFIG; does nothing when it is there
	$(BIN)/i2p cache build $(CONFIG) $(OVERRIDES) $(ARGS)

pretrain: $(STAMP) ## environment, cache, training and evaluation of CONFIG
	$(BIN)/i2p pretrain $(CONFIG) $(OVERRIDES) $(ARGS)

downstream: $(STAMP) ## the quickstart's encoder through every protocol, beside its twin without a teacher: one table
	$(BIN)/i2p downstream $(ARGS)

test: $(STAMP) ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP) ## benchmarks: tables of ratios against baselines run in the same process
	$(BIN)/python -m benchmarks $(ARGS)

gpu: $(STAMP) ## kernels, step, build and training on the GPU of this machine, checked and timed, in eight minutes
	$(BIN)/python -m benchmarks.gpu $(ARGS)

parity: $(STAMP) ## compare with arrays recorded from the reference implementation in the folder DIR
	$(BIN)/python -m benchmarks.parity $(DIR) $(ARGS)

pictures: $(STAMP) ## draw the README's pictures anew
	$(BIN)/python -m benchmarks.pictures

clean: ## remove the environment and tool caches; caches/ and runs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
