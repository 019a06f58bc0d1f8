# make demo and make test do all set-up: they create .venv and install the package into it.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow check types docs clean

demo: $(INSTALLED)
	$(BIN)/tpack demo

# a fixed hash seed, so that generated examples are the same in every run
test: check
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=95

test-slow: $(INSTALLED)
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -m slow

check: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# cli/ installs as tpack.cli; mypy needs to see it there
types: $(INSTALLED)
	rm -rf build/types && mkdir -p build/types
	cp -r tpack build/types/tpack && cp -r cli build/types/tpack/cli
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# pages that tests compare with the code
docs: $(INSTALLED)
	$(BIN)/python -m tpack.cli.reference

clean:
	rm -rf $(VENV) build *.egg-info .coverage
