# Everything runs in .venv, under the versions of constraints.txt; `make dev` makes it.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# pip before 23.3 copies torch's local version label wrongly; a plain number takes the build the index offers first.
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test test-all check dev stubs docs bench clean

demo: $(VENV)/.site
	$(BIN)/synthedge demo

TESTS := not slow

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "$(TESTS)"

test-all:
	$(MAKE) test TESTS="slow or not slow"

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protocols/compile_stubs.py --check
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow"

dev: $(VENV)/.dev

stubs: $(VENV)/.dev
	$(BIN)/python protocols/compile_stubs.py

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first and pinned: asked for by another package it would bring gigabytes of CUDA.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	touch $@

$(VENV)/.site: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all]" -c constraints.txt
	touch $@

$(VENV)/.dev: $(VENV)/.site pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,dev]" -c constraints.txt
	touch $@
