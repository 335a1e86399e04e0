# Six targets for people and CI alike: setup demo test check docs lock. Each may be run twice and interrupted.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
READY  := $(VENV)/.ready

# What every tool is told once: no telemetry, no look-ups in the network.
export DO_NOT_TRACK=true DVC_NO_ANALYTICS=1 PREFECT_SERVER_ANALYTICS_ENABLED=false GX_ANALYTICS_ENABLED=false \
       HF_HUB_DISABLE_TELEMETRY=1 RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1

.PHONY: setup demo test check docs lock quality label-cost label-scale tree-cost setup-vllm test-vllm setup-deepspeed test-deepspeed bench-engine bench-prm controls clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(READY)  ## install the locked control environment into .venv

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PYTHON): $$($(PYTHON) --version 2>&1) is not 3.11 - 3.13"; echo "hint: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[model,verify,gates,flow,test]'
	@touch $(READY)

demo: setup  ## the main job: data, policy, labels, reward model, comparison, promoted version, page
	@$(BIN)/stepforge retrain

test: check  ## unit, contract and end-to-end tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=8

check: setup  ## format, lint, types, import rules, docs drift
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/reference.py --check

docs: setup  ## write docs/commands.md anew
	@$(BIN)/python docs/reference.py

lock: setup  ## write requirements.lock from what .venv has
	@$(BIN)/python infra/resolve.py model verify gates flow test > requirements.lock.new && mv requirements.lock.new requirements.lock

quality: setup  ## the demo's quality over three seeds, with pooled intervals (about 20 minutes)
	@$(BIN)/python tests/quality.py --seeds 0 1 2

label-cost: setup  ## tokens a label needs, against brute force with 16 at equal error (after a demo; about 5 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.label_cost

tree-cost: setup  ## the same against OmegaPRM's tree search (after a demo; about 10 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.tree_cost --policy artifacts/policy --seeds artifacts/seeds

label-scale: setup  ## seconds and memory of `label` for three million steps (about 4 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.label_scale

setup-vllm:  ## install vLLM's own environment into .venv-vllm
	@PYTHON="$(PYTHON)" bash infra/setup_vllm.sh .venv-vllm requirements-vllm.lock

test-vllm: setup-vllm  ## the engines' suite with vLLM itself, in process and as a server, in vLLM's own environment
	@OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 $(CURDIR)/.venv-vllm/bin/python -m pytest -p no:cacheprovider \
	  tests/contract/test_engines.py tests/contract/test_engines_vllm.py tests/contract/test_engines_stages.py -k 'vllm or server or scripted' --durations=5
	@OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 $(CURDIR)/.venv-vllm/bin/python -m pytest -p no:cacheprovider \
	  tests/contract/test_pooling_vllm.py --durations=5

setup-deepspeed: setup  ## install DeepSpeed into .venv-deepspeed, over .venv: only training on many GPUs needs it
	@test -x .venv-deepspeed/bin/python || $(BIN)/python -m venv .venv-deepspeed
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  $$(.venv-deepspeed/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/stepforge_venv.pth
	@DS_BUILD_OPS=0 .venv-deepspeed/bin/pip install --quiet --disable-pip-version-check --no-build-isolation 'deepspeed>=0.19,<0.20'

test-deepspeed: setup-deepspeed  ## ZeRO 1, 2 and 3 with two processes against one process (about 5 minutes; needs a C++ compiler)
	@OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$(CURDIR)/.venv-deepspeed/extensions \
	  .venv-deepspeed/bin/python -m pytest -p no:cacheprovider tests/contract/test_training_processes.py tests/unit/test_processes.py --durations=5

bench-engine: setup  ## generated tokens per CPU-second against plain transformers, in one run (about 2 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench_engine

controls: setup  ## faults planted on a trained reward model, and which gates find them (after a demo; about 5 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.planted_faults

bench-prm: setup  ## what sharing saves the reward model: scoring, training, memory (about 2 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench_prm $(if $(wildcard artifacts/labels/labels.parquet),--artifacts artifacts)

clean:  ## remove what runs left behind; keeps the environments and the journal of paid work
	rm -rf artifacts data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
