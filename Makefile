# Needs Python 3.11 or newer and make. Stamp files in .venv keep a second call from installing again.
PYTHON ?= python3
OUT ?= runs/quickstart
DATA ?= ../shared/data
MINUTES ?=
PIP_FLAGS ?= --disable-pip-version-check --quiet

VENV := .venv
BIN := $(VENV)/bin
SETTINGS := pyproject.toml constraints.txt
OPENAI_NODE := openai@6.49.0
LLAMA_CPP := node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1

.PHONY: help install outside quickstart test test-fast test-slow lint format docs bench clean

help:
	@echo "make install     environment in $(VENV) with everything for development"
	@echo "make quickstart  train a small model on this machine and talk to it (OUT=DIR MINUTES=N)"
	@echo "make test        every test but the slow ones;  test-fast: the short unit tests;  test-slow: the oracles"
	@echo "make lint        ruff, mypy, import order of the rooms"
	@echo "make docs        the manual, in site/"
	@echo "make bench       the benchmarks in benchmarks/ (DATA=DIR)"

install: $(VENV)/dev.stamp

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cutaway needs Python 3.11 or newer (make PYTHON=python3.12 ...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: $(SETTINGS) | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(VENV)/dev.stamp: $(SETTINGS) | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/oracle.stamp: $(SETTINGS) | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev,oracle]'
	@touch $@ $(VENV)/dev.stamp $(VENV)/run.stamp

.venv457/stamp: constraints-457.txt
	$(PYTHON) -m venv .venv457
	.venv457/bin/python -m pip install $(PIP_FLAGS) -r constraints-457.txt
	@touch $@

# The real llama.cpp, prebuilt, Go for Ollama's templates, real clients of the server, and a browser for its page; without npm or apt the tests
# that need them are skipped.
outside: .llama_cpp/stamp .llama_cpp/go.stamp .clients/node.stamp .clients/litellm.stamp .clients/browser.stamp

.llama_cpp/stamp:
	mkdir -p .llama_cpp
	npm install --prefix .llama_cpp --ignore-scripts --omit=optional --no-audit --no-fund --silent $(LLAMA_CPP)
	@touch $@

.llama_cpp/go.stamp:
	command -v go >/dev/null || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends golang-go; }
	@mkdir -p .llama_cpp && touch $@

.clients/node.stamp:
	mkdir -p .clients
	npm install --prefix .clients --ignore-scripts --no-audit --no-fund --silent $(OPENAI_NODE)
	@touch $@

# An environment of its own: litellm says itself which openai it takes.
.clients/litellm.stamp: constraints-litellm.txt
	$(PYTHON) -m venv .clients/litellm
	.clients/litellm/bin/python -m pip install $(PIP_FLAGS) -r constraints-litellm.txt
	@touch $@

.clients/browser.stamp:
	test -x /usr/bin/chromium || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk; }
	@mkdir -p .clients && touch $@

quickstart: $(VENV)/run.stamp
	$(BIN)/cutaway quickstart --out $(OUT) $(if $(MINUTES),--budget-minutes $(MINUTES))

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests

test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not long" tests/unit

# Without the oracles (no network, say) the tests that need them are skipped, each with its reason.
test-slow: $(VENV)/dev.stamp
	-@$(MAKE) --no-print-directory --keep-going $(VENV)/oracle.stamp .venv457/stamp outside
	$(BIN)/python -m pytest -q -n 2 -m slow tests

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev.stamp
	$(BIN)/mkdocs build --strict --quiet

# Each table goes to benchmarks/RESULTS.md by hand, with machine, date and command.
bench: $(VENV)/oracle.stamp
	@test -f $(DATA)/pretrain_mix.jsonl.xz || { echo "make bench DATA=DIR: needs pretrain_mix, pretrain_extra and sft_mix .jsonl.xz"; exit 2; }
	test -f runs/bench/tokenizer/tokenizer.json || $(BIN)/cutaway tokenizer train --data $(DATA)/pretrain_mix.jsonl.xz --scripts hans:0.8,hant:0.2 --out runs/bench/tokenizer
	$(BIN)/python benchmarks/compression.py --data $(DATA)/pretrain_mix.jsonl.xz
	$(BIN)/python benchmarks/against_transformers.py speed --pretrain $(DATA)/pretrain_mix.jsonl.xz --sft $(DATA)/sft_mix.jsonl.xz --tokenizer runs/bench/tokenizer
	$(BIN)/python benchmarks/against_transformers.py quality --pretrain $(DATA)/pretrain_mix.jsonl.xz --tokenizer runs/bench/tokenizer
	$(BIN)/python benchmarks/training_speed.py peers --pretrain $(DATA)/pretrain_mix.jsonl.xz --sft $(DATA)/sft_mix.jsonl.xz --tokenizer runs/bench/tokenizer
	$(BIN)/python benchmarks/training_speed.py sweep --pretrain $(DATA)/pretrain_mix.jsonl.xz --tokenizer runs/bench/tokenizer
	$(BIN)/python benchmarks/training_speed.py parts --pretrain $(DATA)/pretrain_mix.jsonl.xz --tokenizer runs/bench/tokenizer
	$(BIN)/python benchmarks/growth.py --data $(DATA)/pretrain_mix.jsonl.xz --tokenizer runs/bench/tokenizer
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/speed_ladder.py --data $(DATA)/pretrain_mix.jsonl.xz --tokenizer runs/bench/tokenizer --out runs/bench/ladder

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
