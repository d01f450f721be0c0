# `make` lists the targets. PYTHON=python3.12 chooses the interpreter that .venv is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Options of LAUNCH silence "no config" warnings. Options for both stages of the demo, such as SETTINGS="--num_train_epochs 1", and tests to run instead of all.
SETTINGS :=
TESTS :=
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: help install demo test lint clean

help:
	@echo "make install  .venv with everything, without training"
	@echo "make demo   both stages and the score on the bundled sample"
	@echo "make test   the tests"
	@echo "make lint   ruff check and ruff format --check"
	@echo "make clean  removes .venv"

install: $(STAMP)

# The stamp makes a second run install nothing, unless the dependencies have changed since.
$(STAMP): setup.cfg setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Python 3.10-3.13 is needed, '$(PYTHON)' is: $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e ".[offline,dev]"
	@# pip compiles with one core, and that is half of its time. Templates and files for other Pythons do not compile, as with pip.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

demo: $(STAMP)
	$(LAUNCH) recipes/stage1.py $(SETTINGS)
	$(LAUNCH) recipes/stage2.py $(SETTINGS)
	$(BIN)/python recipes/evaluation.py

# Two processes, as most tests keep one core busy; the tests of a file stay in one process and share what it has made.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

clean:
	rm -rf $(VENV)
