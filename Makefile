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
	$(if $(GPUS),gpus=$(GPUS))$(if $(GATE), gate=$(GATE)) $(if $(RESULTS),'results=$(RESULTS)')$(if $(CHECKPOINTS), 'checkpoints=$(CHECKPOINTS)') $(ARGS)
grid = $(if $(TABLE),table=$(TABLE),table=table5)

# A variable that a target does not read is a slip, such as METHOD for METHODS: nothing starts.
grid_names := PROFILE MODELS METHODS TARGETS SEEDS JOBS GPUS GATE RESULTS CHECKPOINTS ARGS
running := JOBS GPUS GATE
reads_help := $(grid_names) TABLE FIGURE AXIS VALUES A B GPU SBATCH PART SIZE DEVICE STAGE BUMP KILLS SEED
reads_sweep := $(grid_names) AXIS VALUES
reads_plan := $(grid_names) TABLE GPU
reads_sbatch := $(grid_names) TABLE SBATCH
reads_zeroshot := $(filter-out METHODS SEEDS CHECKPOINTS,$(grid_names)) TABLE
reads_publish := $(filter-out $(running),$(grid_names)) TABLE FIGURE
reads_restore := PROFILE RESULTS
reads_report := $(filter-out $(running),$(grid_names))
reads_all := $(filter-out METHODS TARGETS,$(grid_names))
reads_rates := $(filter-out TARGETS SEEDS CHECKPOINTS,$(grid_names))
reads_calibration := $(filter-out TARGETS METHODS SEEDS CHECKPOINTS,$(grid_names))
reads_fig1 := $(filter-out SEEDS CHECKPOINTS JOBS GATE,$(grid_names))
reads_predict := PROFILE MODELS METHODS TARGETS SEEDS GPUS RESULTS ARGS
reads_compare := A B RESULTS PROFILE
reads_verify := RESULTS PROFILE ARGS
reads_accept := STAGE BUMP
reads_chaos := KILLS SEED ARGS
reads_pretrain := MODELS ARGS
reads_test := ARGS
reads_test-fast := ARGS
reads_bench-scorers := ARGS
reads_bench-methods := SIZE DEVICE METHODS ARGS
reads_bench := $(reads_bench-methods)
reads_gpu-check := PART ARGS
reads_list :=
reads_lint :=
reads_clean :=
goals := $(or $(MAKECMDGOALS),help)
reads := PYTHON VENV $(foreach goal,$(goals),$(if $(filter undefined,$(origin reads_$(goal))),$(grid_names),$(reads_$(goal))))
given := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
slips := $(filter-out $(reads) MAKEFLAGS MAKEOVERRIDES SHELL,$(given))
ifneq ($(slips),)
near = $(shell python3 -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1))' $(1) $(reads))
$(foreach name,$(slips),$(info error: make $(goals) does not read $(name).$(if $(call near,$(name)), Did you mean $(call near,$(name))?)))
$(error nothing was started. It reads $(sort $(reads)))
endif

.PHONY: help table2 table3 table4 table5 table6 variants zeroshot smoke sweep fig1 fig3 fig5 fig6 fig7 plane forgetting regime survey predict form \
	all report compare verify sbatch plan list test test-fast lint pretrain rates calibration publish restore bench bench-scorers bench-methods gpu-check \
	doctor chaos accept clean check-python

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: MODELS METHODS TARGETS SEEDS GPUS (comma lists), CHECKPOINTS=name:dir, PROFILE, RESULTS, JOBS, ARGS,"; \
	  echo "             AXIS VALUES, A B, GATE, PYTHON, VENV, TABLE, FIGURE, GPU, SBATCH, PART, SIZE, DEVICE, STAGE, BUMP, KILLS"

table5: $(ready) ## Table 5 and its radar plots: captioning targets
	@$(python) -m benchmark run table=table5 $(settings)

table6: $(ready) ## Table 6 and its radar plots: question answering targets
	@$(python) -m benchmark run table=table6 $(settings)

table2: $(ready) ## Table 2, measured: memory, learnable ratio, step time, H
	@$(python) -m benchmark run table=table2 $(settings)

table3: $(ready) ## Table 3: how candidates are selected
	@$(python) -m benchmark run table=table3 $(settings)

table4: $(ready) ## Table 4: SPIDER's modules
	@$(python) -m benchmark run table=table4 $(settings)

variants: $(ready) ## every named variant beside its default
	@$(python) -m benchmark run table=variants $(settings)

sweep: $(ready) ## any keys: AXIS=train.epochs VALUES=5,10 (several: AXIS="a b" VALUES="1,2 3,4")
	@$(python) -m benchmark sweep $(foreach axis,$(join $(addsuffix =,$(AXIS)),$(VALUES)),'$(axis)') $(settings)

fig1: $(ready) ## Fig. 1: parameter importance discrepancy of seen and unseen sets
	@$(python) -m benchmark figure $@ $(settings)

fig3: $(ready) ## Fig. 3: images with the answers of three methods (Fig. 4 comes with its tables)
	@$(python) -m benchmark figure $@ $(settings)

fig5: $(ready) ## Fig. 5: more epochs
	@$(python) -m benchmark figure $@ $(settings)

fig6: $(ready) ## Fig. 6: more tuned layers
	@$(python) -m benchmark figure $@ $(settings)

fig7: $(ready) ## Fig. 7: larger batches
	@$(python) -m benchmark figure $@ $(settings)

plane: $(ready) ## kept against learned, with WiSE-FT as the control
	@$(python) -m benchmark figure $@ $(settings)

forgetting: $(ready) ## scores after every epoch of one training
	@$(python) -m benchmark figure $@ $(settings)

regime: $(ready) ## SPIDER against Full FT over training rows and learning rates (PROFILE=pocket_10k)
	@$(python) -m benchmark figure $@ $(settings)

survey: $(ready) ## every method at equal learning: the table and the plane (docs/survey.md)
	@$(python) -m benchmark figure $@ $(settings)

predict: $(ready) ## what predicts forgetting, over all finished cells
	@$(python) -m benchmark figure $@ $(settings)

form: $(ready) ## form or content: what is still lost after a solved question
	@$(python) -m benchmark figure $@ $(settings)

all: $(ready) ## every table and figure from what is missing, then the report
	@$(python) -m benchmark all $(settings)

report: $(ready) ## one HTML page from finished cells: claims, tables, figures, answers
	@$(python) -m benchmark report $(settings)

compare: $(ready) ## two results folders cell by cell: A=dir B=dir (default: your run and the published)
	@$(python) -m benchmark compare $(if $(A)$(RESULTS)$(B),'$(or $(A),$(RESULTS),results/runs/$(or $(PROFILE),pocket))') \
		$(if $(B),'$(B)') $(if $(PROFILE),profile=$(PROFILE))

verify: $(ready) ## check a results folder against itself, answers scored again: RESULTS=results/... (default: your run)
	@$(python) -m benchmark verify $(if $(RESULTS),'$(RESULTS)') $(if $(PROFILE),profile=$(PROFILE)) $(ARGS)

sbatch: $(ready) ## a Slurm array script of the missing cells: make sbatch TABLE=table6 SBATCH="--partition=x" > job.sh
	@$(python) -m benchmark plan --sbatch $(grid) $(settings) $(if $(SBATCH),'sbatch=$(SBATCH)')

zeroshot: $(ready) ## score the untuned models and compare them with the paper's zero-shot row (PROFILE=paper)
	@$(python) -m benchmark zeroshot $(if $(TABLE),table=$(TABLE)) $(settings)

smoke: $(ready) ## a slice of Table 5 through the same path, in a minute
	@$(python) -m benchmark run table=smoke $(settings)

plan: $(ready) ## what a table needs: cells, time, space (TABLE=table6, and with PROFILE=paper GPU=4090x8)
	@$(python) -m benchmark plan $(grid) $(settings) $(if $(GPU),gpu=$(GPU))

list: $(ready) ## models, methods, datasets, tables
	@$(python) -m benchmark list

# Whatever the shell says: without bytecode pytest would rewrite all assertions anew in every worker.
test test-fast: export PYTHONDONTWRITEBYTECODE :=

test: $(ready) ## all tests, linter and types, a process per core
	@$(python) -m pytest -q -n auto --maxprocesses 8 --dist worksteal $(ARGS) < /dev/null

test-fast: $(ready) ## the quick tests, in about a minute and a half
	@$(python) -m pytest -q -n auto --maxprocesses 8 --dist worksteal -m "not slow and not multiprocess" $(ARGS) < /dev/null

lint: $(ready) ## the linter and the type checker alone
	@$(python) -m ruff check .
	@$(python) -m mypy

chaos: $(ready) ## kill a small table at KILLS=40 moments, finish it, compare with a quiet run
	@$(python) -m tests.chaos kills=$(or $(KILLS),40) seed=$(or $(SEED),0) $(ARGS)

accept: $(ready) ## developers: a change of code that changes no number: STAGE="train score" or all (BUMP=1: that does)
	@$(python) -m benchmark accept $(STAGE) $(if $(BUMP),--bump)

pretrain: $(ready) ## make llava_pocket and vila_pocket again, from nothing (MODELS=qwen_pocket: the third shipped base)
	@$(python) -m benchmark pretrain $(if $(MODELS),model=$(MODELS)) $(ARGS)

rates: $(ready) ## choose the learning rates again, on validation data
	@$(python) -m benchmark rates $(settings)

calibration: $(ready) ## compare the untuned models and Full FT with the paper's rows (PROFILE=pocket_10k)
	@$(python) -m benchmark calibration $(settings)

publish: $(ready) ## finished cells, tables, figures to results/ as the reference (TABLE= SEEDS= FIGURE= ARGS=--partial)
	@$(python) -m benchmark publish $(if $(TABLE),table=$(TABLE)) $(if $(FIGURE),figure=$(FIGURE)) $(settings)

restore: $(ready) ## published cells back into results/runs, to go on from them on another machine
	@$(python) -m benchmark restore $(settings)

bench: bench-scorers bench-methods ## what scoring and the methods' optimizer steps cost

bench-scorers: $(ready) ## time the scorers on sets of the real sizes (ARGS=out=FILE)
	@$(python) -m benchmark bench scorers $(ARGS)

bench-methods: $(ready) ## time each method's optimizer step against Full FT's (SIZE=llava15_7b, DEVICE=cuda)
	@$(python) -m benchmark bench $(if $(SIZE),size=$(SIZE)) $(if $(DEVICE),device=$(DEVICE)) \
		$(if $(METHODS),methods=$(METHODS)) $(ARGS)

gpu-check: $(ready) ## measure this machine's GPU with full-size random models (PART=train|memory|eval)
	@$(python) -m benchmark gpu-check part=$(PART) $(ARGS)

doctor: $(ready) ## check packages, Java, processors, memory, disk (PROFILE=paper: GPUs, checkpoints, data)
	@$(python) -m benchmark doctor $(settings)

clean: ## remove the environment, drawn data and your own runs (not the published results)
	rm -rf $(VENV) data results/runs build .pytest_cache .ruff_cache .mypy_cache .hypothesis

check-python:
	@$(python) -m benchmark.profiling.doctor --packages

$(VENV)/.installed: pyproject.toml constraints.txt .ci/install.sh
	@bash .ci/install.sh $(VENV)
