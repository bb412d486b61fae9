# Needs python3 (3.11 or newer), make and a package index; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
UV = $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)

.PHONY: setup demo evaluate evaluate-agent evaluate-drift test check policies audit lint types format lock ui clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AgentCore needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + ": make setup PYTHON=python3.12")'
	@echo "setting up $(VENV): about 200 packages, a minute or two the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@( while sleep 3; do printf .; done ) & dots=$$!; \
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --compile-bytecode --require-hashes -r requirements.lock; \
	status=$$?; kill $$dots; echo; exit $$status
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/agentcore demo

ui: $(STAMP)
	$(BIN)/agentcore ui

# Without variables: the example agent. FUNC is a function from dict to dict, or a program; an empty one is the
# agent's champion.
AGENT_NAME ?= loan_approval
DATASET ?= loan_approval_test_set
BASELINE ?= baseline_v1
CURRENT ?= current_month
FUNC ?= $(if $(filter loan_approval,$(AGENT_NAME)),examples.loan_approval.agent:decide)
FUNC_OPTION = $(if $(FUNC),--func $(FUNC))

evaluate evaluate-agent: $(STAMP)
	@test -n "$$AGENTCORE_DATA" || test -d data/evaluation || $(BIN)/python examples/loan_approval/make_data.py
	$(BIN)/agentcore evaluate --agent $(AGENT_NAME) --dataset $(DATASET) $(FUNC_OPTION)

evaluate-drift: $(STAMP)
	@test -n "$$AGENTCORE_DATA" || test -d data/evaluation || $(BIN)/python examples/loan_approval/make_data.py
	$(BIN)/agentcore drift --agent $(AGENT_NAME) --baseline $(BASELINE) --dataset $(CURRENT) $(FUNC_OPTION)

test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

# Needs kubectl. Checkov has more dependencies than AgentCore, so it gets its own environment.
policies: $(STAMP)
	@command -v kubectl >/dev/null || { echo "kubectl is needed to render the manifests: install it"; exit 1; }
	UV_TOOL_DIR=$(VENV)/tools UV_TOOL_BIN_DIR=$(BIN) $(UV) tool install --quiet checkov
	$(BIN)/python -m pytest -q -rs tests/test_manifests.py

# Checks the locked packages for known vulnerabilities. Needs more network access than the package index.
audit: $(STAMP)
	UV_TOOL_DIR=$(VENV)/tools UV_TOOL_BIN_DIR=$(BIN) $(UV) tool install --quiet pip-audit
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement requirements.lock

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	$(UV) pip compile --quiet --universal --generate-hashes --all-extras --no-header --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV)
