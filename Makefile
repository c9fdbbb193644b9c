# Every task has one command; `make` lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTHON_DIRS := server client build_support tests scripts docs/examples $(wildcard bench) setup.py
# `make arm` has tests/arm.
TESTS ?= tests --ignore=tests/arm
PYTEST_ARGS ?=
TORTURE_ARGS ?=
CHURN_ARGS ?=
ARM_ARGS ?=
PROVE_SECONDS ?= 1200

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

.PHONY: setup
setup: $(VENV)/.installed generated ## Make .venv with everything in it (as root: also the Debian packages for the tests)

.PHONY: demo
demo: setup ## Trace a sample server that runs, live, and leave it as it was
	@$(BIN)/python scripts/demo.py

.PHONY: fleet-demo
fleet-demo: setup ## Trace eight hosts (network namespaces) as one; kill an agent midway (as root)
	@$(BIN)/python scripts/fleet_demo.py

.PHONY: test
test: setup ## Run all tests (TESTS=tests/unit for some of them)
	@scripts/run-tests $(TESTS) -q --durations=15 $(PYTEST_ARGS)

.PHONY: lint
lint: setup ## Check style, types and the API's proto files
	@$(BIN)/ruff check $(PYTHON_DIRS)
	@$(BIN)/ruff format --check $(PYTHON_DIRS)
	@$(BIN)/mypy
	@cd proto && ../$(BIN)/buf lint

.PHONY: format
format: setup ## Rewrite the code in the project's style
	@$(BIN)/ruff check --fix $(PYTHON_DIRS)
	@$(BIN)/ruff format $(PYTHON_DIRS)

.PHONY: bench
bench: setup ## Measure the figures of docs/benchmarks.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" bench/run

.PHONY: torture
torture: setup ## Toggle every form a million times, kill the agent at each step, attach 100,000 times (TORTURE_ARGS, KILL_ARGS, CHURN_ARGS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.torture.run $(TORTURE_ARGS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.torture.kill_matrix $(KILL_ARGS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.torture.churn $(CHURN_ARGS)

.PHONY: prove
prove: setup ## Compare moved code with the original, on real binaries, for PROVE_SECONDS
	@$(BIN)/python -m tests.torture.prove_relocation --seconds $(PROVE_SECONDS)
	@$(BIN)/python -m tests.torture.fuzz_elf --seconds $(PROVE_SECONDS)

.PHONY: arm
arm: setup ## Run the tests of tests/arm/suite.txt on AArch64, in an emulator (ARM_ARGS='tests/unit/test_rings.py' for others)
	@$(BIN)/python -m tests.arm.run $(ARM_ARGS)
ifeq ($(ARM_ARGS),)
	@$(BIN)/python -m pytest -q tests/arm
endif

.PHONY: clean
clean: ## Remove everything that can be made again
	rm -rf build dist $(VENV) demo-out tests/targets/_built bench/results *.egg-info
	rm -rf server/uftrace_agent/runtime/_built .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f proto/uftrace/agent/v1/*_pb2.py proto/uftrace/agent/v1/*_pb2.pyi proto/uftrace/agent/v1/*_pb2_grpc.py
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Installed packages are looked at every time: it takes some milliseconds, and a
# tree that moves to another machine would carry a stamp that is wrong there.
.PHONY: apt
apt:
	@scripts/install-apt-packages

$(VENV)/bin/python: | apt
	@scripts/make-venv

# The build requirements go into .venv too, so that a changed .proto or .c file
# is rebuilt there (`generated`) and not in a build environment of pip's.
$(VENV)/.installed: pyproject.toml setup.py | apt $(VENV)/bin/python
	@echo "setup: installing Python packages into $(VENV)"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' >$(VENV)/build-requirements.txt
	@$(BIN)/python -m pip install -qq --requirement $(VENV)/build-requirements.txt
	@$(BIN)/python -m pip install -qq --no-build-isolation --requirement $(VENV)/build-requirements.txt --editable '.[dev]'
	@touch $@

# Both steps compare times themselves and do nothing when nothing changed.
.PHONY: generated
generated: $(VENV)/.installed
	@$(BIN)/python -m build_support.protobuf
	@$(BIN)/python -m build_support.native >/dev/null
