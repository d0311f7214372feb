# Thin: every target is one `python -m benchmark ...` line. `make` alone shows them.
# The first target that needs Python installs .venv from constraints.txt; PYTHON=/path/to/python uses an environment
# of your own instead, after checking that it satisfies the ranges of pyproject.toml.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
VENV ?= .venv

ifdef PYTHON
python := $(PYTHON)
ready := check-python
else
python := $(VENV)/bin/python
ready := $(VENV)/.installed
endif

# Passed on only when set, e.g. make table5 METHODS=full_ft,spider SEEDS=0,1,2 ARGS="train.epochs=10"
settings = $(if $(PROFILE),profile=$(PROFILE)) $(if $(MODELS),models=$(MODELS)) $(if $(METHODS),methods=$(METHODS)) \
	$(if $(TARGETS),targets=$(TARGETS)) $(if $(SEEDS),seeds=$(SEEDS)) $(if $(JOBS),jobs=$(JOBS)) \
	$(if $(GPUS),gpus=$(GPUS)) $(if $(RESULTS),'results=$(RESULTS)') $(ARGS)
grid = $(if $(TABLE),table=$(TABLE),table=table5)

.PHONY: help table5 table6 smoke plan list test lint pretrain rates publish gpu-check doctor clean check-python

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PROFILE MODELS METHODS TARGETS SEEDS JOBS GPUS RESULTS (comma lists), PYTHON, TABLE, ARGS"

table5: $(ready) ## Table 5 and its radar plots: captioning targets
	@$(python) -m benchmark run table=table5 $(settings)

table6: $(ready) ## Table 6 and its radar plots: question answering targets
	@$(python) -m benchmark run table=table6 $(settings)

smoke: $(ready) ## a slice of Table 5 through the same path, in a minute
	@$(python) -m benchmark run table=smoke $(settings)

plan: $(ready) ## what a table needs: cells, time, space (TABLE=table6, and with PROFILE=paper GPU=4090x8)
	@$(python) -m benchmark plan $(grid) $(settings) $(if $(GPU),gpu=$(GPU))

list: $(ready) ## models, methods, datasets, tables
	@$(python) -m benchmark list

test: $(ready) lint ## all tests (and the linter)
	@$(python) -m pytest -q $(ARGS) < /dev/null

lint: $(ready) ## the linter alone
	@$(python) -m ruff check .

pretrain: $(ready) ## make the two shipped base models again, from nothing (MODELS=one)
	@$(python) -m benchmark pretrain $(if $(MODELS),model=$(MODELS)) $(ARGS)

rates: $(ready) ## choose the learning rates again, on validation data
	@$(python) -m benchmark rates $(settings)

publish: $(ready) ## copy your finished Tables 5 and 6 to results/ as the reference (SEEDS=0,1,2)
	@$(python) -m benchmark publish $(if $(TABLE),table=$(TABLE)) $(settings)

gpu-check: $(ready) ## measure this machine's GPU with full-size random models (PART=train|memory|eval)
	@$(python) -m benchmark gpu-check part=$(PART) $(ARGS)

doctor: $(ready) ## check packages, Java, processors, memory, disk (PROFILE=paper: GPUs, checkpoints, data)
	@$(python) -m benchmark doctor $(settings)

clean: ## remove the environment, drawn data and your own runs (not the published results)
	rm -rf $(VENV) data results/runs build .pytest_cache .ruff_cache .hypothesis

check-python:
	@$(python) -m benchmark.doctor --packages

$(VENV)/.installed: pyproject.toml constraints.txt .ci/install.sh
	@bash .ci/install.sh $(VENV)
