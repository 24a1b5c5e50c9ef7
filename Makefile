# Every target works from a fresh clone: it makes .venv and installs the pinned dependencies first.
PYTHON ?= python3
BUDGET ?= quick
RESULTS ?= results/studies
ifeq ($(OS),Windows_NT)
BIN := $(CURDIR)/.venv/Scripts
else
BIN := $(CURDIR)/.venv/bin
endif
READY := .venv/installed
export PATH := $(BIN):$(PATH)
# Every stage is a process of its own: modules that none may keep compiled would be compiled anew in each, for 10 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help repro gsm8k study docs test bench torture lint ui lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' Makefile

repro: $(READY) ## run the pipeline: model, data, training, evaluation, report
	"$(BIN)/dvc" repro

gsm8k: $(READY) ## the real job, hours long: 494M parameters learn GSM8K; GSM8K=DIR reads train.jsonl and test.jsonl there
	"$(BIN)/python" pipelines/compose.py --config-name gsm8k $(if $(GSM8K),task.path="$(GSM8K)")
	"$(BIN)/dvc" repro
	@echo "params.yaml describes GSM8K now; python pipelines/compose.py writes the default pipeline's again."

study: $(READY) ## answer a question by many runs: make study NAME=progressive BUDGET=quick; repeated, it goes on
	@test -n "$(NAME)" || { echo "Say which study: make study NAME=progressive; conf/study/ has them all."; exit 1; }
	"$(BIN)/python" pipelines/study.py study=$(NAME) budget=$(BUDGET) results=$(RESULTS) $(if $(GSM8K),'also="\"task.path=$(GSM8K)\""')
	"$(BIN)/python" pipelines/report.py studies=$(RESULTS) hydra.run.dir=. hydra.output_subdir=null hydra/job_logging=stdout

docs: $(READY) ## write the studies' findings into the pages of docs/ anew, from results/studies
	"$(BIN)/python" -m cpu_grpo.report.pages

# Two at a time, most of them starting processes that import for seconds; threads that wait leave the cores to others.
test: export OMP_WAIT_POLICY = passive
test: $(READY) ## run the tests; make test FAST=1 runs those that take no time, within two minutes
	"$(BIN)/python" -m pytest --numprocesses 2 $(if $(FAST),-m "not slow")

bench: $(READY) ## measure speed against stock TRL and others: hours; ONLY="scaling ..." runs some rows
	"$(BIN)/python" benchmarks/run.py $(if $(ONLY),--only $(ONLY))

torture: $(READY) ## try to break it: kills, full disks, outages, fuzzing; QUICK=1 takes at most five minutes, all of it hours
	"$(BIN)/python" benchmarks/reliability.py $(if $(QUICK),--quick) $(if $(GSM8K),--gsm8k "$(GSM8K)")

lint: $(READY) ## check style, types and the direction of imports
	"$(BIN)/pre-commit" run --all-files

ui: $(READY) ## browse the runs at http://127.0.0.1:5000
	"$(BIN)/mlflow" ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

lock: $(READY) ## pin the dependencies anew from pyproject.toml
	"$(BIN)/python" -m pip install --quiet uv
	"$(BIN)/uv" pip compile --universal --python-version 3.11 --extra dev --no-header --quiet --upgrade pyproject.toml -o requirements.lock

clean: ## remove what the pipeline made, keeping its cache and the MLflow runs
	rm -rf models data results/train results/evaluate reports reward_faults cache outputs multirun

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or later is needed (TRL requires it), and $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	"$(BIN)/python" -m pip install --quiet --no-compile --requirement requirements.lock
	"$(BIN)/python" -m pip install --quiet --no-deps --editable .
	@touch $(READY)
