# make demo | test | check | lab | bench | course | notebooks | readme | graph: each installs what it needs into .venv first, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo install test check nbtest pytest lab bench notebooks ablations readme graph course wheel clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= outputs
WORKERS ?= 2

# Everything that ends up in the installed package: a change reinstalls it (seconds).
SOURCES := settings.ini setup.py MANIFEST.in $(wildcard README.md LICENSE) \
           $(shell find vrshq_nb -type f -not -path '*/__pycache__/*' 2>/dev/null)

# What people write; the modules are written by nbdev.
WRITTEN := nbs tests setup.py .ci/readme .ci/graph .ci/course $(wildcard vrshq_nb/__*__.py vrshq_nb/*/__init__.py)

# $(call reqs,KEY,NAMES): the requirements listed in settings.ini under KEY, only those of NAMES where given, one a line
reqs = $(BIN)/python -c "import configparser, re, sys; c = configparser.ConfigParser(delimiters=['=']); c.read('settings.ini', encoding='utf-8'); \
       [print(r) for r in c['DEFAULT']['$(1)'].split('\n') if r and (len(sys.argv) == 1 or re.match(r'[\w-]+', r)[0] in sys.argv[1:])]" $(2)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# ---- installing, in an order that matters --------------------------------------------------------------------------
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: Python 3.10 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "error: no virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $(VENV) has an older Python than 3.10: delete it and try again" >&2; exit 1; }
	@touch $@

# torch and torchvision together, from one place: builds from two places do not fit each other.
$(VENV)/.torch: $(VENV)/.python
	$(PIP) install --quiet setuptools wheel
	$(PIP) install $$($(call reqs,requirements,torch torchvision))
	@touch $@

# sam2 is published as source; built in isolation it would fetch a second torch. Its CUDA extension is optional.
$(VENV)/.sam2: $(VENV)/.torch
	SAM2_BUILD_CUDA=0 $(PIP) install --quiet --no-build-isolation $$($(call reqs,requirements,sam2))
	@touch $@

# The package itself is installed as a copy, so that tests see what a user gets; a left-over build folder would bring old modules back.
$(VENV)/.package: $(VENV)/.sam2 $(SOURCES)
	@rm -rf build vrshq_nb.egg-info
	$(PIP) install --quiet --no-build-isolation .
	@rm -rf build vrshq_nb.egg-info
	@touch $@

$(VENV)/.dev: $(VENV)/.package settings.ini
	@$(call reqs,dev_requirements) > $(VENV)/dev.txt
	$(PIP) install --quiet -r $(VENV)/dev.txt
	@touch $@

$(VENV)/.lab: $(VENV)/.package settings.ini
	@$(call reqs,lab_requirements) > $(VENV)/lab.txt
	$(PIP) install --quiet -r $(VENV)/lab.txt
	@touch $@

install: $(VENV)/.package  ## the package and what it needs, into .venv

# ---- using ---------------------------------------------------------------------------------------------------------
demo: $(VENV)/.package  ## install, then segment sample videos with the model inside the package
	$(BIN)/vrshq demo -o $(OUT)

bench: $(VENV)/.package  ## where the time goes, on this machine
	$(BIN)/vrshq bench

# The repository is served, not nbs/ alone: pages link to files outside it.
lab: $(VENV)/.lab  ## JupyterLab on the notebooks
	$(BIN)/python -m jupyter lab --ServerApp.root_dir="$$PWD" --LabApp.default_url=/lab/tree/nbs/00_tour.ipynb $(LAB_ARGS)

# Students work in course/student: copies that are there already are kept.
course: $(VENV)/.dev  ## the labs, in course/student without solutions and in course/instructor with them
	$(BIN)/python .ci/course $(COURSE_ARGS)

# ---- developing ----------------------------------------------------------------------------------------------------
test: check nbtest pytest  ## all checks: the house's rules, every notebook runs, pytest

check: $(VENV)/.dev  ## the house's rules: notebooks and package agree, style, types, who imports whom
	.ci/notebooks drift
	$(BIN)/python .ci/readme --check
	$(BIN)/ruff check vrshq_nb $(WRITTEN)
	$(BIN)/ruff format --check $(WRITTEN)
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy --no-incremental
	env -u PYTHONPATH $(BIN)/pytest --import-mode=importlib -p no:cacheprovider -q tests/test_house.py

nbtest: $(VENV)/.dev
	WORKERS=$(WORKERS) .ci/notebooks test

# Against the installed package: the checkout is on no import path here.
pytest: $(VENV)/.dev
	env -u PYTHONPATH OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest --import-mode=importlib -p no:cacheprovider \
	  -n $(WORKERS) --dist loadfile --durations=5 tests $(PYTEST_ARGS)

notebooks: $(VENV)/.dev  ## run all notebooks in place and keep their outputs
	@set -e; for nb in $$(find nbs -name '*.ipynb' -not -path '*/.*' | sort); do \
	  PATH="$$PWD/$(BIN):$$PATH" PYTHONPATH="$$PWD" IN_TEST=1 $(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.timeout=900 --ExecutePreprocessor.kernel_name=python3 "$$nb"; done
	$(BIN)/nbdev_clean

# Two processes measure half of the clips each; the last run collects what they wrote and stores it.
ablations: $(VENV)/.dev  ## measure the tables of nbs/24_ablations again, for new weights
	cd nbs && export VRSHQ_SLOW=1 OMP_NUM_THREADS=1 IN_TEST=1 PYTHONPATH="$$PWD/.." PATH="$$PWD/../$(BIN):$$PATH" && \
	  { VRSHQ_PART=0/2 ipython -c "%run 24_ablations.ipynb" & VRSHQ_PART=1/2 ipython -c "%run 24_ablations.ipynb" & wait; } && \
	  jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=3600 \
	    --ExecutePreprocessor.kernel_name=python3 24_ablations.ipynb
	$(BIN)/nbdev_clean

readme: $(VENV)/.dev  ## README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme

graph: $(VENV)/.dev  ## the picture of CONTRIBUTING.md: which module uses which
	$(BIN)/python .ci/graph

wheel: $(VENV)/.sam2  ## a wheel in dist/
	@rm -rf build vrshq_nb.egg-info
	$(PIP) wheel --no-deps --no-build-isolation -w dist .
	@rm -rf build vrshq_nb.egg-info

clean:  ## remove .venv and everything generated
	rm -rf $(VENV) build dist outputs vrshq_nb.egg-info _docs _proc .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
