# SPDX-License-Identifier: Apache-2.0
# Every chore of the repository. `make help` prints this file's ## lines.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
ROUNDS ?= 10
export OMP_NUM_THREADS ?= 1
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test explore fuzz check format lint types imports dead docs storm memory soak chaos protocol oracles mutants bench bench-training bench-composition bench-policy bench-serving bench-serving-full bench-peers lm-eval base lock clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(VENV)/.runtime: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (needs only Python >= 3.11 and pip; downloads once)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; run make with PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.dev ## make the environment with everything tests and checks need

demo: $(VENV)/.runtime ## train, permit, answer, withdraw and settle on real text, over the real doors
	@$(BIN)/python -m examples.demo $(DEMO)

test: $(VENV)/.dev ## the whole test suite
	@$(BIN)/pytest $(PYTEST)

explore: $(VENV)/.dev ## the property tests with new random examples, ROUNDS=10 times over
	@for round in $$(seq $(ROUNDS)); do echo "- round $$round of $(ROUNDS)"; \
		HYPOTHESIS_PROFILE=explore $(BIN)/pytest -q -m "not cluster and not chaos and not browser" \
		$$(grep -rlE '^ *@given' tests --include='test_*.py') $(PYTEST) || exit 1; done

fuzz: $(VENV)/.dev ## questions drawn from the OpenAPI description, in many more examples (FUZZ_EXAMPLES=60 FUZZ_SEED=1)
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-60} FUZZ_SEED=$${FUZZ_SEED:-1} $(BIN)/pytest -q --timeout 3600 tests/cluster/test_openapi_fuzz.py

check: format lint types imports dead docs ## format, lint, types, import contracts, dead code, docs

format: $(VENV)/.dev
	@echo "- format"; $(BIN)/ruff format --check --quiet .

lint: $(VENV)/.dev
	@echo "- lint"; $(BIN)/ruff check --quiet .

types: $(VENV)/.dev
	@echo "- types"; $(BIN)/mypy

imports: $(VENV)/.dev
	@echo "- import contracts"; $(BIN)/lint-imports --no-cache

dead: $(VENV)/.dev
	@echo "- dead code"; $(BIN)/vulture

docs: $(VENV)/.dev
	@echo "- docs"; $(BIN)/codespell

storm: $(VENV)/.dev ## withdraw experts from under 200 streams over 4 replicas, 500 times (STORM="--cycles 50" for fewer)
	@$(BIN)/python -m examples.storm $(STORM)
	@$(BIN)/python -m examples.storm --mutant --streams 24 --replicas 1 --cycles 3 --folder build/storm-mutant

memory: $(VENV)/.dev ## what 50 endpoints over 16 experts cost on one node, and what a publication costs
	@$(BIN)/python -m examples.storm.memory $(MEMORY)

soak: $(VENV)/.dev ## 20 minutes of load, cancellations, publications and killed replicas: no leak, no lost or doubled usage
	@$(BIN)/python -m examples.storm.soak $(SOAK)

chaos: $(VENV)/.dev ## kill every process with SIGKILL, 20 seeds over three phases, and bring it up again
	@$(BIN)/python -m examples.chaos --seeds 20

protocol: $(VENV)/.dev ## every state of the recomposition protocol within larger bounds, and its mutants' shortest traces
	@PYTHONPATH=.:tests/protocol $(BIN)/python tests/protocol/protocol_run.py

oracles: $(VENV)/.dev ## a million random worlds, and all small ones, decided alike by four evaluators (ORACLES="--worlds N --seed S")
	@PYTHONPATH=.:tests/oracles:tests/policy $(BIN)/python tests/oracles/oracle_run.py $(ORACLES)

mutants: $(VENV)/.dev ## 360 small wrongs in the deciding code, one at a time: who notices (MUTANTS="--mutants N")
	@PYTHONPATH=.:tests/oracles:tests/oracles/mutants:tests/policy $(BIN)/python tests/oracles/mutants/mutant_run.py $(MUTANTS)

bench: bench-training bench-composition bench-policy bench-serving ## every benchmark against its peers; rows in build/bench-NAME.json

bench-training: $(VENV)/.dev ## tokens per second of expert training against Hugging Face Trainer
	@$(BIN)/python -m benchmarks.training $(BENCH)

bench-composition: $(VENV)/.dev ## what merging costs each owner, under rows, tuned router and gates (DATA=folder of texts)
	@$(BIN)/python -m benchmarks.composition --data "$(DATA)" $(BENCH)

bench-policy: $(VENV)/.dev ## deciding, explaining, publishing and replaying, against Cedar and their bounds, a few minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.policy $(BENCH)

bench-serving: bench-peers ## tokens per second of serving against Hugging Face and llama.cpp, a quarter of an hour
	@$(BIN)/python -m benchmarks.serving $(BENCH)

bench-serving-full: bench-peers ## every shape, format, concurrency and prompt length; hours, goes on where it was ended
	@$(BIN)/python -m benchmarks.serving --full --resume $(BENCH)

bench-peers: $(VENV)/.dev
	@$(BIN)/python -c 'import gguf, llama_cpp' 2>/dev/null || { \
		echo "- llama.cpp's Python package (compiles for some minutes, once)"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' \
		|| echo "- llama.cpp could not be installed (see above) and is left out"; }

lm-eval: $(VENV)/.dev ## let lm-eval (MIT, 80 MB, installed into build/lm-eval) evaluate a deployment over HTTP
	@test -d build/lm-eval || $(BIN)/python -m pip install --quiet --no-deps --target build/lm-eval lm_eval==0.4.13 tenacity
	@PYTHONPATH=build/lm-eval $(BIN)/python -m examples.lm_eval

base: $(VENV)/.dev ## rebuild the starter base from text that every installation has
	@$(BIN)/python -m examples.make_base

lock: $(VENV)/.dev ## resolve constraints.txt anew from pyproject.toml
	@$(BIN)/python -m pip install --quiet pip-tools
	@$(BIN)/pip-compile --quiet --extra dev --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate --output-file constraints.txt pyproject.toml
	@sed -i 's/+cpu$$//' constraints.txt

clean: ## remove what builds and tests left behind
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
